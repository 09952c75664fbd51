"""Domains as styles: one record of ranges, from which every scene of the domain is drawn.

A style holds the ranges of the camera, the street, the colours of things, and the light and weather.
``STYLES`` holds the named domains; :func:`random_style` draws from the whole space around them. The
demo teacher is trained on random styles.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gkd_scale.scenes.geometry import Vec3, mix

Range = tuple[float, float]
Colours = tuple[Vec3, ...]


@dataclass(frozen=True)
class Style:
    """Ranges are uniform; metres and radians; densities are objects a 10 m of one kerb; weather is 0..1."""

    name: str
    # Camera.
    camera_height: Range = (1.3, 1.9)
    pitch: Range = (-0.02, 0.08)
    yaw: Range = (-0.16, 0.16)
    focal: Range = (0.72, 0.95)
    # Street.
    lanes: tuple[int, int] = (2, 4)
    lane_width: Range = (2.9, 3.6)
    sidewalk: Range = (1.8, 4.0)
    curve: Range = (-0.004, 0.004)
    setback: Range = (0.0, 4.0)
    lot: Range = (9.0, 20.0)
    storeys: tuple[int, int] = (2, 6)
    built: float = 0.75
    gable: float = 0.35
    grass: float = 0.5
    trees: float = 0.55
    conifers: float = 0.15
    hedges: float = 0.3
    cars: float = 0.45
    people: float = 0.5
    poles: float = 0.5
    # Colours.
    facades: Colours = ((0.72, 0.62, 0.50), (0.62, 0.40, 0.32), (0.78, 0.76, 0.70), (0.55, 0.52, 0.50))
    facade_spread: float = 0.10
    asphalt: Colours = ((0.34, 0.34, 0.36),)
    paving: Colours = ((0.58, 0.56, 0.54), (0.52, 0.47, 0.43))
    foliage: Colours = ((0.22, 0.40, 0.14), (0.32, 0.46, 0.18))
    bodywork: Colours = (
        (0.75, 0.76, 0.78),
        (0.12, 0.12, 0.14),
        (0.55, 0.10, 0.10),
        (0.14, 0.22, 0.48),
        (0.42, 0.43, 0.45),
    )
    zenith: Colours = ((0.30, 0.52, 0.86),)
    horizon: Colours = ((0.78, 0.87, 0.96),)
    clouds: Range = (0.0, 0.7)
    # Light and weather.
    exposure: Range = (0.9, 1.1)
    contrast: Range = (0.95, 1.05)
    sun: Range = (0.3, 0.8)
    tint: Vec3 = (1.0, 1.0, 1.0)
    saturation: Range = (0.95, 1.05)
    night: Range = (0.0, 0.0)
    fog: Range = (0.0, 0.0)
    rain: Range = (0.0, 0.0)
    snow: Range = (0.0, 0.0)
    noise: Range = (0.004, 0.012)
    blur: Range = (0.0, 0.0)


_OVERCAST: Colours = ((0.60, 0.64, 0.70), (0.52, 0.55, 0.60))

SOURCE = Style("source")
NIGHT = replace(
    SOURCE,
    name="unseen_night",
    night=(0.82, 1.0),
    tint=(0.98, 0.96, 1.08),
    zenith=((0.20, 0.26, 0.45),),
    horizon=((0.38, 0.34, 0.40),),
    noise=(0.025, 0.05),
    exposure=(0.9, 1.2),
)
FOG = replace(
    SOURCE,
    name="unseen_fog",
    fog=(0.5, 0.95),
    sun=(0.0, 0.1),
    zenith=_OVERCAST,
    horizon=((0.72, 0.74, 0.76),),
    saturation=(0.6, 0.85),
    contrast=(0.75, 0.95),
)
RAIN = replace(
    SOURCE,
    name="unseen_rain",
    rain=(0.55, 1.0),
    fog=(0.05, 0.2),
    sun=(0.0, 0.05),
    zenith=_OVERCAST,
    horizon=((0.62, 0.66, 0.70),),
    exposure=(0.55, 0.8),
    saturation=(0.6, 0.85),
    tint=(0.94, 0.99, 1.08),
    blur=(0.2, 0.7),
)
SNOW = replace(
    SOURCE,
    name="unseen_snow",
    snow=(0.6, 1.0),
    fog=(0.05, 0.25),
    sun=(0.0, 0.15),
    zenith=((0.74, 0.77, 0.82), (0.66, 0.70, 0.76)),
    horizon=((0.86, 0.88, 0.91),),
    saturation=(0.7, 0.95),
    tint=(0.97, 0.99, 1.05),
)
CITY = replace(
    SOURCE,
    name="unseen_city",
    camera_height=(2.1, 3.2),
    pitch=(0.02, 0.14),
    yaw=(-0.28, 0.28),
    focal=(0.6, 0.75),
    lanes=(1, 2),
    lane_width=(2.6, 3.2),
    sidewalk=(1.2, 2.4),
    curve=(-0.012, 0.012),
    setback=(0.0, 0.6),
    lot=(6.0, 12.0),
    storeys=(4, 11),
    built=0.93,
    gable=0.1,
    grass=0.1,
    trees=0.25,
    conifers=0.0,
    hedges=0.15,
    cars=0.6,
    people=1.0,
    facades=(
        (0.86, 0.48, 0.34),
        (0.92, 0.78, 0.42),
        (0.40, 0.62, 0.72),
        (0.86, 0.62, 0.66),
        (0.48, 0.66, 0.50),
        (0.90, 0.90, 0.86),
    ),
    facade_spread=0.16,
    asphalt=((0.52, 0.46, 0.40), (0.46, 0.45, 0.46)),
    paving=((0.66, 0.54, 0.44), (0.40, 0.40, 0.42)),
    foliage=((0.38, 0.44, 0.12), (0.18, 0.36, 0.22), (0.50, 0.42, 0.14)),
    bodywork=(
        (0.90, 0.75, 0.15),
        (0.15, 0.50, 0.45),
        (0.85, 0.85, 0.80),
        (0.60, 0.22, 0.12),
        (0.1, 0.1, 0.1),
    ),
    zenith=((0.45, 0.58, 0.74), (0.86, 0.66, 0.50)),
    horizon=((0.94, 0.86, 0.74),),
    tint=(1.07, 1.0, 0.90),
    sun=(0.5, 1.0),
)

STYLES: dict[str, Style] = {style.name: style for style in (SOURCE, NIGHT, FOG, RAIN, SNOW, CITY)}


def random_style(rng: np.random.Generator) -> Style:
    """One point of the style space: its own layout, palette, time of day and mix of weathers.

    The order of the draws decides the pictures: it must not change.
    """
    low_rise = rng.random() < 0.6
    narrow = rng.random() < 0.4
    height = rng.uniform(1.1, 3.4)
    tall = int(rng.integers(4, 13))
    focal = rng.uniform(0.55, 1.05)
    density = rng.uniform(0.2, 1.3, size=4)
    overcast = rng.random() < 0.45
    zenith, horizon = _sky(rng, overcast)
    return Style(
        "random",
        camera_height=(height, height),
        pitch=(-0.05, 0.15),
        yaw=(-0.3, 0.3),
        focal=(focal, focal),
        storeys=(1, 5) if low_rise else (3, tall),
        zenith=zenith,
        horizon=horizon,
        clouds=(0.0, 1.0),
        # Street.
        lanes=(1, 2) if narrow else (2, 5),
        lane_width=(2.5, 3.7),
        sidewalk=(1.1, 2.6) if narrow else (1.5, 5.0),
        curve=(-0.012, 0.012),
        setback=(0.0, float(rng.choice((0.4, 2.0, 6.0)))),
        lot=(6.0, 13.0) if narrow else (9.0, 22.0),
        built=rng.uniform(0.45, 0.98),
        gable=rng.random(),
        grass=rng.random(),
        trees=0.8 * density[0],
        conifers=rng.random() * 0.6,
        hedges=rng.random() * 0.6,
        cars=0.7 * density[1],
        people=density[2],
        poles=0.7 * density[3],
        # Colours.
        facades=_colours(rng, 5, hue=(0.0, 1.0), saturation=(0.0, 0.65), value=(0.25, 0.97)),
        facade_spread=0.15,
        asphalt=_colours(rng, 2, hue=(0.0, 1.0), saturation=(0.0, 0.2), value=(0.2, 0.62)),
        paving=_colours(rng, 2, hue=(0.0, 0.2), saturation=(0.0, 0.4), value=(0.3, 0.8)),
        foliage=_colours(rng, 3, hue=(0.10, 0.42), saturation=(0.3, 0.8), value=(0.2, 0.6)),
        bodywork=_colours(rng, 6, hue=(0.0, 1.0), saturation=(0.0, 0.9), value=(0.08, 0.95)),
        **_light(rng, overcast),
        **_weather(rng),
    )


def _light(rng: np.random.Generator, overcast: bool) -> dict[str, Any]:
    """The camera and the sun."""
    return {
        "exposure": _spread(rng, 0.55, 1.35, 0.1),
        "contrast": _spread(rng, 0.7, 1.25, 0.05),
        "sun": (0.0, 0.15) if overcast else (0.3, 1.0),
        "tint": (rng.uniform(0.88, 1.12), rng.uniform(0.94, 1.06), rng.uniform(0.86, 1.14)),
        "saturation": _spread(rng, 0.4, 1.3, 0.1),
        "noise": _spread(rng, 0.0, 0.05, 0.01),
        "blur": (0.0, float(rng.choice((0.0, 0.0, 0.6)))),
    }


def _weather(rng: np.random.Generator) -> dict[str, Any]:
    """None, one or two of night, fog, rain and snow, each anywhere from faint to full."""
    count = int(rng.choice((0, 1, 1, 1, 2)))
    if count == 0:
        return {}
    kinds = rng.choice(("night", "night", "fog", "rain", "snow"), size=count, replace=False)
    return {str(kind): _spread(rng, 0.15, 1.0, 0.1) for kind in kinds}


def _spread(rng: np.random.Generator, low: float, high: float, width: float) -> Range:
    """A narrow range around a uniform draw from ``low`` to ``high``, and inside them."""
    middle = rng.uniform(low, high)
    return max(low, middle - width), min(high, middle + width)


def _colours(rng: np.random.Generator, count: int, *, hue: Range, saturation: Range, value: Range) -> Colours:
    hsv = rng.uniform([hue[0], saturation[0], value[0]], [hue[1], saturation[1], value[1]], (count, 3))
    return tuple(colorsys.hsv_to_rgb(float(h), float(s), float(v)) for h, s, v in hsv)


def _sky(rng: np.random.Generator, overcast: bool) -> tuple[Colours, Colours]:
    grey = rng.uniform(0.35, 0.9)
    if overcast:
        zenith = (grey * 0.97, grey, min(1.0, grey * 1.06))
        return (zenith,), (mix(zenith, (1.0, 1.0, 1.0), rng.uniform(0.0, 0.6)),)
    zenith = _colours(rng, 1, hue=(0.53, 0.66), saturation=(0.3, 0.75), value=(0.45, 0.95))[0]
    warm = _colours(rng, 1, hue=(0.02, 0.16), saturation=(0.1, 0.5), value=(0.75, 1.0))[0]
    pale = mix(zenith, (1.0, 1.0, 1.0), 0.65)
    return (zenith,), (mix(pale, warm, float(rng.choice((0.0, 0.3, 0.8)))),)
