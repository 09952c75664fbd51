"""A street before it is painted: camera, ground and objects, all in metres.

:func:`compose` draws a scene from a style. All objects stand along a curved road: the world X of an
object ``offset`` metres to the right of the road's middle at distance ``z`` is
``offset + curve * z ** 2 / 2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gkd_scale.scenes.geometry import Camera, Vec3, mix, shade
from gkd_scale.scenes.styles import Colours, Range, Style
from gkd_scale.types import Size

REACH = 110.0
"""Metres of street that are furnished."""


@dataclass(frozen=True)
class Ground:
    """``half`` width of the road, ``walks`` of the left and right sidewalk; ``curve`` in 1/m."""

    half: float
    lanes: int
    walks: tuple[float, float]
    curve: float
    asphalt: Vec3
    paving: Vec3
    base: Vec3
    grassy: bool
    kerb: float
    marking: Vec3
    dash: float
    crossing: float | None

    def middle(self, z: float) -> float:
        """World X of the road's middle."""
        return 0.5 * self.curve * z * z if z > 0 else 0.0


@dataclass(frozen=True)
class Building:
    """A box from ``z`` to ``z1``; its street face is at ``x``, its back ``depth`` metres to ``side`` (±1)."""

    z: float
    z1: float
    x: float
    side: int
    depth: float
    storeys: int
    storey: float
    colour: Vec3
    trim: Vec3
    glass: Vec3
    bay: float
    window: tuple[float, float]
    gable: float
    roof: Vec3
    shop: Vec3 | None
    lit: float
    seed: int


@dataclass(frozen=True)
class Tree:
    z: float
    x: float
    height: float
    crown: float
    conifer: bool
    colour: Vec3
    bark: Vec3
    seed: int


@dataclass(frozen=True)
class Hedge:
    z: float
    z1: float
    x: float
    side: int
    height: float
    colour: Vec3


@dataclass(frozen=True)
class Car:
    """``heading`` 0 is away from the camera along the road; the body is centred at (x, z)."""

    z: float
    x: float
    heading: float
    length: float
    width: float
    height: float
    cabin: tuple[float, float]
    colour: Vec3
    lights: bool


@dataclass(frozen=True)
class Pole:
    """``kind`` lamp, sign, signal or plain; ``arm`` metres towards the road, negative to the left."""

    z: float
    x: float
    height: float
    width: float
    kind: str
    arm: float
    colour: Vec3
    plate: Vec3
    shape: int


@dataclass(frozen=True)
class Pedestrian:
    z: float
    x: float
    height: float
    stride: float
    shirt: Vec3
    trousers: Vec3
    skin: Vec3
    coat: bool


Thing = Building | Tree | Hedge | Car | Pole | Pedestrian


@dataclass(frozen=True)
class Scene:
    """``skyline``: (world X, width, height, wooded) of far silhouettes; ``sun``: shadow strength."""

    camera: Camera
    ground: Ground | None
    things: tuple[Thing, ...]
    skyline: tuple[tuple[float, float, float, bool], ...]
    sun: float
    sun_side: float


def uniform(rng: np.random.Generator, span: Range) -> float:
    """A uniform draw from ``span``."""
    return span[0] + (span[1] - span[0]) * float(rng.random())


def pick(rng: np.random.Generator, colours: Colours, spread: float = 0.06) -> Vec3:
    """One of ``colours``, each channel moved by up to ``spread``."""
    r, g, b = colours[int(rng.integers(len(colours)))]
    brighter, dr, dg, db = spread * (2 * rng.random(4) - 1)
    return _unit(r + brighter + dr / 2), _unit(g + brighter + dg / 2), _unit(b + brighter + db / 2)


def compose(style: Style, rng: np.random.Generator, size: Size) -> Scene:
    """Draw one street."""
    ground = _ground(style, rng)
    camera = Camera(
        size,
        x=_camera_x(ground, rng),
        height=uniform(rng, style.camera_height),
        pitch=uniform(rng, style.pitch),
        yaw=uniform(rng, style.yaw),
        focal=uniform(rng, style.focal),
    )
    things = [thing for side in (-1, 1) for thing in _kerbside(style, ground, side, rng)]
    things += _traffic(style, ground, camera, rng)
    return Scene(
        camera=camera,
        ground=ground,
        things=tuple(things),
        skyline=tuple(_skyline(style, rng)),
        sun=uniform(rng, style.sun),
        sun_side=2 * float(rng.random()) - 1,
    )


def _ground(style: Style, rng: np.random.Generator) -> Ground:
    lanes = int(rng.integers(style.lanes[0], style.lanes[1] + 1))
    grassy = bool(rng.random() < style.grass)
    paving = pick(rng, style.paving)
    yellow = rng.random() < 0.2
    return Ground(
        half=0.5 * lanes * uniform(rng, style.lane_width) + 0.3,
        lanes=lanes,
        walks=(uniform(rng, style.sidewalk), uniform(rng, style.sidewalk)),
        curve=uniform(rng, style.curve),
        asphalt=pick(rng, style.asphalt),
        paving=paving,
        base=mix(pick(rng, style.foliage), (0.5, 0.5, 0.3), 0.25) if grassy else shade(paving, 0.9),
        grassy=grassy,
        kerb=uniform(rng, (0.08, 0.18)),
        marking=(0.86, 0.72, 0.25) if yellow else (0.88, 0.88, 0.86),
        dash=uniform(rng, (2.0, 4.0)),
        crossing=uniform(rng, (6.0, 30.0)) if rng.random() < 0.35 else None,
    )


def _camera_x(ground: Ground, rng: np.random.Generator) -> float:
    """World X of the camera: in a lane most of the time, sometimes at the kerb."""
    if rng.random() < 0.2:
        side = -1 if rng.random() < 0.5 else 1
        return side * (ground.half + uniform(rng, (-1.0, 1.0)))
    return uniform(rng, (-0.75, 0.75)) * ground.half


def _kerbside(style: Style, ground: Ground, side: int, rng: np.random.Generator) -> Iterator[Thing]:
    """All objects on one side of the street."""
    walk = ground.walks[(side + 1) // 2]
    inner, outer = ground.half, ground.half + walk
    yield from _lots(style, ground, side, outer, rng)

    def along(density: float, start: float = 1.5) -> Iterator[float]:
        z = start + uniform(rng, (0.0, 8.0))
        while z < REACH * 0.7:
            yield z
            z += (0.35 + 1.3 * float(rng.random())) * 10.0 / max(density, 0.05)

    in_verge = rng.random() < 0.5
    for z in along(style.trees, 4.0):
        offset = inner + 0.6 if in_verge and walk > 2.2 else outer + uniform(rng, (0.2, 2.5))
        yield _tree(style, side * offset + ground.middle(z), z, rng)
    for z in along(style.poles, 3.0):
        x = side * (inner + uniform(rng, (0.3, 0.7))) + ground.middle(z)
        yield _pole(x, z, side, rng)
    for z in along(style.people, 3.0):
        for _ in range(1 + int(rng.random() < 0.35)):
            x = side * uniform(rng, (inner + 0.5, outer + 0.2)) + ground.middle(z)
            yield _pedestrian(x, z + uniform(rng, (0.0, 1.0)), rng)
    if rng.random() < 0.7:
        for z in along(style.cars * 1.1, 5.0):
            x = side * (inner - 1.05) + ground.middle(z)
            heading = _along_road(ground, z) + (math.pi if side < 0 else 0.0)
            yield _car(style, x, z, heading, rng, lights=False)


def _lots(style: Style, ground: Ground, side: int, outer: float, rng: np.random.Generator) -> Iterator[Thing]:
    z = uniform(rng, (-6.0, 2.0))
    while z < REACH:
        length = uniform(rng, style.lot)
        front = outer + uniform(rng, style.setback)
        if rng.random() < style.built:
            x = side * front + ground.middle(z + 0.3 * length)
            yield _building(style, x, z, z + length, side, rng)
            if front - outer > 1.2 and rng.random() < style.hedges:
                yield _hedge(style, ground, z, length, side, outer, rng)
        else:
            for _ in range(1 + int(3 * rng.random())):
                at = z + length * float(rng.random())
                x = side * (outer + uniform(rng, (1.0, 9.0))) + ground.middle(at)
                yield _tree(style, x, max(at, 4.0), rng)
            if rng.random() < 0.5:
                yield _hedge(style, ground, z, length, side, outer, rng)
        z += length + (uniform(rng, (1.0, 7.0)) if rng.random() < 0.35 else 0.0)


def _building(style: Style, x: float, z: float, z1: float, side: int, rng: np.random.Generator) -> Building:
    colour = pick(rng, style.facades, style.facade_spread)
    return Building(
        z=z,
        z1=z1,
        x=x,
        side=side,
        depth=uniform(rng, (8.0, 14.0)),
        storeys=int(rng.integers(style.storeys[0], style.storeys[1] + 1)),
        storey=uniform(rng, (2.8, 3.5)),
        colour=colour,
        trim=mix(colour, (1.0, 1.0, 1.0) if rng.random() < 0.6 else (0.1, 0.1, 0.1), 0.35),
        glass=pick(rng, ((0.22, 0.28, 0.34), (0.45, 0.55, 0.64), (0.12, 0.13, 0.15)), 0.05),
        bay=uniform(rng, (2.0, 4.2)),
        window=(uniform(rng, (0.3, 0.8)), uniform(rng, (0.4, 0.75))),
        gable=uniform(rng, (1.5, 4.0)) if rng.random() < style.gable else 0.0,
        roof=pick(rng, ((0.45, 0.22, 0.16), (0.30, 0.30, 0.33), (0.38, 0.30, 0.24)), 0.06),
        shop=pick(rng, style.bodywork, 0.1) if rng.random() < 0.35 else None,
        lit=0.75 * float(rng.random()),
        seed=int(rng.integers(1 << 30)),
    )


def _tree(style: Style, x: float, z: float, rng: np.random.Generator) -> Tree:
    height = uniform(rng, (3.5, 9.5))
    return Tree(
        z=z,
        x=x,
        height=height,
        crown=height * uniform(rng, (0.2, 0.36)),
        conifer=bool(rng.random() < style.conifers),
        colour=pick(rng, style.foliage, 0.06),
        bark=pick(rng, ((0.30, 0.22, 0.16), (0.42, 0.38, 0.34)), 0.04),
        seed=int(rng.integers(1 << 30)),
    )


def _hedge(
    style: Style, ground: Ground, z: float, length: float, side: int, outer: float, rng: np.random.Generator
) -> Hedge:
    return Hedge(
        z=z,
        z1=z + length * uniform(rng, (0.5, 1.0)),
        x=side * (outer + 0.3) + ground.middle(z + 0.5 * length),
        side=side,
        height=uniform(rng, (0.6, 1.6)),
        colour=pick(rng, style.foliage, 0.05),
    )


def _traffic(style: Style, ground: Ground, camera: Camera, rng: np.random.Generator) -> Iterator[Thing]:
    """Moving cars in the lanes, and people on the crossing."""
    lane = 2 * ground.half / ground.lanes
    for number in range(ground.lanes):
        z = uniform(rng, (7.0, 40.0))
        while z < REACH * 0.8:
            if rng.random() < min(0.9, style.cars):
                offset = -ground.half + (number + 0.5) * lane + uniform(rng, (-0.3, 0.3))
                away = 2 * number >= ground.lanes - 1
                heading = _along_road(ground, z) + (0.0 if away else math.pi) + uniform(rng, (-0.06, 0.06))
                yield _car(style, offset + ground.middle(z), z, heading, rng, lights=True)
            z += uniform(rng, (9.0, 40.0))
    if rng.random() < 0.12:
        z = uniform(rng, (9.0, 22.0))
        heading = math.pi / 2 + uniform(rng, (-0.3, 0.3))
        yield _car(style, camera.x + uniform(rng, (-4.0, 4.0)), z, heading, rng, lights=True)
    if ground.crossing is not None:
        for _ in range(int(4 * rng.random() * min(1.0, style.people + 0.3))):
            x = uniform(rng, (-ground.half, ground.half)) + ground.middle(ground.crossing)
            yield _pedestrian(x, ground.crossing + uniform(rng, (0.2, 2.5)), rng)


def _along_road(ground: Ground, z: float) -> float:
    return math.atan(ground.curve * z)


def _car(style: Style, x: float, z: float, heading: float, rng: np.random.Generator, *, lights: bool) -> Car:
    van = rng.random() < 0.18
    heights, lengths = ((1.9, 2.5), (4.6, 5.6)) if van else ((1.38, 1.65), (3.6, 4.8))
    rear, front = ((0.02, 0.1), (0.7, 0.85)) if van else ((0.02, 0.2), (0.6, 0.72))
    height = uniform(rng, heights)
    return Car(
        z=z,
        x=x,
        heading=heading,
        length=uniform(rng, lengths),
        width=uniform(rng, (1.7, 2.0)),
        height=height,
        cabin=(uniform(rng, rear), uniform(rng, front)),
        colour=pick(rng, style.bodywork, 0.07),
        lights=lights or bool(rng.random() < 0.15),
    )


def _pole(x: float, z: float, side: int, rng: np.random.Generator) -> Pole:
    kind = ("lamp", "lamp", "sign", "sign", "signal", "plain")[int(rng.integers(6))]
    heights = {"lamp": (5.0, 8.0), "sign": (2.3, 3.2), "signal": (3.0, 4.2), "plain": (5.0, 9.0)}[kind]
    metals = ((0.45, 0.46, 0.48), (0.18, 0.20, 0.20), (0.62, 0.63, 0.64), (0.36, 0.28, 0.20))
    plates = ((0.80, 0.12, 0.12), (0.12, 0.25, 0.70), (0.92, 0.80, 0.15), (0.9, 0.9, 0.9), (0.1, 0.45, 0.2))
    return Pole(
        z=z,
        x=x,
        height=uniform(rng, heights),
        width=uniform(rng, (0.12, 0.22)),
        kind=kind,
        arm=-side * uniform(rng, (0.8, 2.2)),
        colour=pick(rng, metals, 0.05),
        plate=pick(rng, plates, 0.05),
        shape=int(rng.integers(3)),
    )


def _pedestrian(x: float, z: float, rng: np.random.Generator) -> Pedestrian:
    cloth = rng.random((2, 3)) * 0.85 + 0.05
    grey = cloth.mean(axis=1, keepdims=True)
    shirt, trousers = 0.7 * cloth + 0.3 * grey
    tone = 0.25 + 0.6 * float(rng.random())
    return Pedestrian(
        z=z,
        x=x,
        height=uniform(rng, (1.1, 1.4)) if rng.random() < 0.15 else uniform(rng, (1.55, 1.95)),
        stride=uniform(rng, (-0.32, 0.32)),
        shirt=(float(shirt[0]), float(shirt[1]), float(shirt[2])),
        trousers=shade((float(trousers[0]), float(trousers[1]), float(trousers[2])), 0.7),
        skin=(tone, 0.76 * tone, 0.62 * tone),
        coat=bool(rng.random() < 0.3),
    )


def _skyline(style: Style, rng: np.random.Generator) -> Iterator[tuple[float, float, float, bool]]:
    """Silhouettes 200 m away, so that the street does not end in an empty horizon."""
    wooded = rng.random() < 0.35 + 0.5 * (1 - style.built)
    x = -260.0
    while x < 260.0:
        width = uniform(rng, (18.0, 50.0))
        height = uniform(rng, (4.0, 14.0)) if wooded else 3.0 * style.storeys[1] * uniform(rng, (0.4, 1.4))
        if rng.random() < 0.85:
            yield x, width, height, wooded
        x += width * uniform(rng, (0.7, 1.1))


def _unit(value: float) -> float:
    return min(max(float(value), 0.0), 1.0)


def furniture(style: Style, rng: np.random.Generator, size: Size) -> Scene:
    """A few objects of a street, near and large, without the street: for the proxy set."""
    camera = Camera(
        size,
        height=uniform(rng, (0.8, 2.6)),
        pitch=uniform(rng, (-0.12, 0.2)),
        yaw=uniform(rng, (-0.1, 0.1)),
        focal=uniform(rng, (0.6, 1.3)),
    )
    things: list[Thing] = []
    for _ in range(2 + int(4 * rng.random())):
        z = uniform(rng, (3.5, 13.0))
        x = uniform(rng, (-0.45, 0.45)) * z / camera.focal
        side = -1 if x < 0 else 1
        kind = int(rng.integers(6))
        if kind == 0:
            things.append(_building(style, x, z, z + uniform(rng, style.lot), side, rng))
        elif kind == 1:
            things.append(_tree(style, x, z, rng))
        elif kind == 2:
            things.append(_pole(x, 0.7 * z, side, rng))
        elif kind == 3:
            things.append(_pedestrian(x, 0.5 * z, rng))
        else:
            things.append(_car(style, x, z, uniform(rng, (0.0, 6.28)), rng, lights=rng.random() < 0.5))
    return Scene(camera, None, tuple(things), (), uniform(rng, style.sun), 2 * float(rng.random()) - 1)
