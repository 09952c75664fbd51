"""Light and weather: they turn a painted scene into a picture.

Each effect is one small function of arrays. All work at the size of the image, in linear-looking
values 0..1, and use the true depth and position of every pixel: fog is Koschmieder's law, lamps
fall off with their distance to the surface, wet ground mirrors the things above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gkd_scale.scenes.geometry import Camera, Floats, Layers, Vec3
from gkd_scale.scenes.layout import pick, uniform
from gkd_scale.scenes.paint import Lamp
from gkd_scale.scenes.styles import Style
from gkd_scale.types import Size, UInt8Array

_LUMA = np.array([0.30, 0.59, 0.11], dtype=np.float32)
_DRAWS = ("night", "fog", "rain", "snow", "exposure", "contrast", "saturation", "noise", "blur", "clouds")
"""In the order of their draws, which decides the pictures."""


@dataclass(frozen=True)
class Weather:
    """One draw from the weather ranges of a style; strengths 0..1."""

    night: float
    fog: float
    rain: float
    snow: float
    exposure: float
    contrast: float
    saturation: float
    noise: float
    blur: float
    sun: float
    clouds: float
    zenith: Vec3
    horizon: Vec3
    tint: Vec3


def draw_weather(style: Style, sun: float, rng: np.random.Generator) -> Weather:
    """Draw the weather of one picture; ``sun`` is the scene's shadow strength."""
    draws: dict[str, Any] = {name: uniform(rng, getattr(style, name)) for name in _DRAWS}
    zenith, horizon = (pick(rng, colours, 0.05) for colours in (style.zenith, style.horizon))
    return Weather(**draws, sun=sun, zenith=zenith, horizon=horizon, tint=style.tint)


def photograph(
    layers: Layers, lamps: list[Lamp], camera: Camera, weather: Weather, rng: np.random.Generator
) -> UInt8Array:
    """(H, W, 3) uint8: the painted scene in its light and weather."""
    sky = _sky(camera, weather, rng)
    ground = layers.upward > 0.9
    albedo = layers.albedo
    if weather.snow > 0:
        albedo = _lie_snow(albedo, layers, weather.snow, rng)
    shadow = layers.shadow * ground * min(1.0, 1.2 * weather.sun)
    image = albedo * (1.0 - 0.6 * shadow)[..., None] + sky * layers.sky[..., None]
    if weather.night > 0:
        image = _at_night(image, albedo, layers, lamps, weather.night)
    if weather.rain > 0:
        image = _wet(image, layers, ground, camera, weather.rain)
    if weather.fog > 0:
        image = _in_fog(image, layers, weather)
    if weather.snow > 0:
        image = _flakes(image, weather.snow, rng)
    if weather.rain > 0:
        image = _streaks(image, weather.rain, rng)
        image = _drops(image, weather.rain, rng)
    return _develop(image, weather, rng)


def smooth_noise(rng: np.random.Generator, size: Size, cells: int, octaves: int = 3) -> Floats:
    """(H, W) noise around 0, about unit size: ``cells`` rows of bilinear noise, then twice as many, ..."""
    height, width = size
    total = np.zeros(size, dtype=np.float32)
    for octave in range(octaves):
        rows = max(2, cells << octave)
        cols = max(2, rows * width // height)
        grid = Image.fromarray(rng.standard_normal((rows, cols), dtype=np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BILINEAR)) / (1 << octave)
    return total


def _sky(camera: Camera, weather: Weather, rng: np.random.Generator) -> Floats:
    """(H, W, 3): a gradient from horizon to zenith, with clouds in places of high noise."""
    height, width = camera.size
    level = height / 2 - camera.focal_px * np.tan(camera.pitch)
    up = (level - np.arange(height, dtype=np.float32)) / (0.8 * height)
    share = np.clip(up, 0.0, 1.0)[:, None, None] ** 0.7
    sky = (1 - share) * np.array(weather.horizon, np.float32) + share * np.array(weather.zenith, np.float32)
    noise = smooth_noise(rng, camera.size, 2)
    cover = np.clip(0.9 * noise + 2.2 * weather.clouds - 1.1, 0.0, 0.85)[..., None]
    white = 0.25 * sky + 0.75 * float(np.mean(weather.horizon))
    bright = np.minimum(1.0, white + 0.12 * (1 + 0.4 * smooth_noise(rng, camera.size, 3, 2)[..., None]))
    return np.broadcast_to(sky * (1 - cover) + bright * cover, (height, width, 3)).astype(np.float32)


def _lie_snow(albedo: Floats, layers: Layers, snow: float, rng: np.random.Generator) -> Floats:
    """Snow on upward surfaces, in patches; cars and feet clear some of the road."""
    patches = smooth_noise(rng, layers.label.shape, 6)
    bare = 0.45 * (layers.label == 0)
    cover = np.clip(1.7 * snow * layers.upward - bare + 0.3 * patches * (layers.upward > 0), 0.0, 0.95)
    white = np.array([0.90, 0.93, 0.98], dtype=np.float32) * (1 + 0.03 * patches)[..., None]
    return albedo * (1 - cover)[..., None] + white * cover[..., None]


def _at_night(image: Floats, albedo: Floats, layers: Layers, lamps: list[Lamp], night: float) -> Floats:
    """Moonlight, lamps that fall off with distance, the car's own headlights, glowing things, their bloom."""
    dusk = np.array([0.10, 0.12, 0.20], dtype=np.float32) + (1 - night) * np.float32(0.7)
    light = np.zeros_like(image)
    near = sorted(lamps, key=lambda lamp: abs(lamp.place[2]))[:14]
    for lamp in near:
        away = layers.points - np.array(lamp.place, dtype=np.float32)
        squares = np.einsum("hwc,hwc->hw", away, away) / np.float32(lamp.radius**2)
        light += (0.9 / (1.0 + squares * squares))[..., None] * np.array(lamp.colour, dtype=np.float32)
    ahead = np.clip(layers.points[..., 2] / 5.0, 0.0, 1.0) / (1.0 + (layers.points[..., 2] / 13.0) ** 2)
    beam = ahead * np.exp(-((layers.points[..., 1] / 1.6) ** 2)) * (layers.inverse_depth > 0)
    light += 0.5 * beam[..., None] * np.array([1.0, 0.96, 0.86], dtype=np.float32)
    dark = image * dusk + night * albedo * np.minimum(light, 1.3)
    glow = night * layers.glow
    return dark + glow + 0.8 * _blur(glow, 6, 6, Image.Resampling.BICUBIC)


def _wet(image: Floats, layers: Layers, ground: npt.NDArray[np.bool_], camera: Camera, rain: float) -> Floats:
    """Wet ground is darker and mirrors the things above the horizon line."""
    height = camera.size[0]
    level = int(height / 2 - camera.focal_px * np.tan(camera.pitch))
    rows = np.clip(2 * level - np.arange(height), 0, height - 1)
    mirror = _blur(image[rows], 6, 2)
    share = (rain * (0.25 + 0.35 * (layers.label == 0)) * ground)[..., None]
    return image * (1 - 0.35 * share) * (1 - 0.6 * share) + 0.75 * share * mirror


def _in_fog(image: Floats, layers: Layers, weather: Weather) -> Floats:
    """Koschmieder: light is lost as exp(-depth/range) and replaced by the air's own."""
    extinction = np.float32(0.11 * weather.fog**2 + 0.004 * weather.fog)
    depth = 1.0 / np.maximum(layers.inverse_depth, 1e-3)
    transmission = np.exp(-extinction * np.minimum(depth, 600.0))[..., None]
    air = np.array(weather.horizon, dtype=np.float32) * np.float32(1.0 - 0.8 * weather.night)
    return image * transmission + air * (1 - transmission)


def _flakes(image: Floats, snow: float, rng: np.random.Generator) -> Floats:
    height, width = image.shape[:2]
    veil = np.zeros((height, width), dtype=np.float32)
    count = int(snow * height * width / 110)
    rows, cols = rng.integers(0, height, count), rng.integers(0, width, count)
    opacity = 0.35 + 0.6 * rng.random(count, dtype=np.float32)
    veil[rows, cols] = opacity
    large = slice(0, count // 4)
    veil[rows[large], np.minimum(cols[large] + 1, width - 1)] = opacity[large]
    veil[np.minimum(rows[large] + 1, height - 1), cols[large]] = 0.8 * opacity[large]
    return image * (1 - veil)[..., None] + 0.95 * veil[..., None]


def _streaks(image: Floats, rain: float, rng: np.random.Generator) -> Floats:
    """Slanted streaks, brighter than their background."""
    height, width = image.shape[:2]
    veil = np.zeros((height, width), dtype=np.float32)
    count = int(rain * height * width / 160)
    rows, cols = rng.integers(-8, height, count), rng.integers(0, width, count)
    length, opacity = max(4, height // 12), 0.10 + 0.22 * rng.random(count, dtype=np.float32)
    slant = float(rng.random()) * 0.8 - 0.4
    for step in range(length):
        r, c = rows + step, (cols + round(slant * step)) % width
        inside = (r >= 0) & (r < height)
        veil[r[inside], c[inside]] = opacity[inside]
    grey = np.float32(0.35 + 0.5 * float(image.mean()))
    return image * (1 - veil)[..., None] + (grey + 0.25) * veil[..., None]


def _drops(image: Floats, rain: float, rng: np.random.Generator) -> Floats:
    """Drops on the lens show a blurred, shifted patch of the picture."""
    height, width = image.shape[:2]
    image = image.copy()
    blur = _blur(image, 4, 4)
    row, col = np.ogrid[:height, :width]
    for _ in range(int(rain * 9 * rng.random())):
        r, c = rng.integers(0, height), rng.integers(0, width)
        radius = height * (0.02 + 0.045 * float(rng.random()))
        squares = ((row - r) ** 2 + ((col - c) * 1.2) ** 2) / np.float32(radius**2)
        inside = squares < 1
        image[inside] = 0.25 * image[inside] + 0.75 * np.roll(blur, int(radius), axis=0)[inside] + 0.04
    return image


def _blur(
    image: Floats, rows: int, columns: int, method: Image.Resampling = Image.Resampling.BILINEAR
) -> Floats:
    """A picture whose blocks of ``rows`` x ``columns`` pixels are averaged, then scaled up again."""
    height, width = image.shape[:2]
    whole = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    small = whole.resize((max(1, width // columns), max(1, height // rows)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), method), dtype=np.float32) / np.float32(255)


def _develop(image: Floats, weather: Weather, rng: np.random.Generator) -> UInt8Array:
    """Blur, tint, saturation, contrast, exposure, sensor noise; to bytes."""
    if weather.blur > 0:
        image = (1 - 0.7 * weather.blur) * image + 0.7 * weather.blur * _blur(image, 2, 2)
    image = image * np.array(weather.tint, dtype=np.float32) * np.float32(weather.exposure)
    luma = (image * _LUMA).sum(axis=-1, keepdims=True)
    image = luma + np.float32(weather.saturation) * (image - luma)
    middle = np.float32(image.mean())
    image = middle + np.float32(weather.contrast) * (image - middle)
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(weather.noise)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
