"""The painter: a scene becomes albedo, labels, depth and lamps, far things first.

This module does not know weather or night. Faces are shaded by their direction, which is all the
sunlight that a picture of this size can show. Shadows on the ground are separate, since fog and night
remove them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gkd_scale.randomness import generator
from gkd_scale.scenes.geometry import Canvas, Layers, Material, Point, Vec3, mix, shade
from gkd_scale.scenes.layout import Building, Car, Ground, Hedge, Pedestrian, Pole, Scene, Thing, Tree

CLASSES = ("road", "sidewalk", "building", "vegetation", "sky", "car", "pole", "pedestrian")
PALETTE: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (107, 142, 35),
    (70, 130, 180),
    (0, 0, 142),
    (153, 153, 153),
    (220, 20, 60),
)
ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, CAR, POLE, PEDESTRIAN = range(8)

FAR = 400.0
"""Metres to the end of the ground."""

_Side = tuple[list[Vec3], tuple[int, int]]
"""The corners of a face, and its direction (along, across)."""
_Place = Callable[[float, float, float], Vec3]
"""From an object's axes (forward, right, up) to the world."""

_WARM: Vec3 = (1.0, 0.78, 0.45)
_WHITE: Vec3 = (1.0, 0.95, 0.82)
_RED: Vec3 = (0.9, 0.06, 0.04)


@dataclass(frozen=True)
class Lamp:
    """A point of light at ``place`` that reaches ``radius`` metres."""

    place: Vec3
    radius: float
    colour: Vec3


def paint(scene: Scene, rng: np.random.Generator) -> tuple[Layers, list[Lamp]]:
    """Draw ``scene`` and list its lamps; the texture of its surfaces is drawn from ``rng``."""
    canvas = Canvas(scene.camera, SKY)
    lamps: list[Lamp] = []
    if scene.ground is not None:
        _paint_ground(canvas, scene.ground)
        _paint_skyline(canvas, scene)
    for thing in sorted(scene.things, key=_distance, reverse=True):
        _paint_thing(canvas, thing, scene, lamps)
    layers = canvas.develop()
    _add_texture(rng, layers)
    return layers, lamps


def _distance(thing: Thing) -> float:
    """The distance by which things are painted; for long things, a little behind their near end."""
    return thing.z + 0.8 if isinstance(thing, Building | Hedge) else thing.z


def _paint_thing(canvas: Canvas, thing: Thing, scene: Scene, lamps: list[Lamp]) -> None:
    if isinstance(thing, Building):
        _paint_building(canvas, thing, scene)
    elif isinstance(thing, Tree):
        _paint_tree(canvas, thing, scene)
    elif isinstance(thing, Hedge):
        _paint_hedge(canvas, thing)
    elif isinstance(thing, Car):
        _paint_car(canvas, thing, scene, lamps)
    elif isinstance(thing, Pole):
        _paint_pole(canvas, thing, lamps)
    else:
        _paint_pedestrian(canvas, thing, scene)


# --- ground -------------------------------------------------------------------------------------


def _paint_ground(canvas: Canvas, ground: Ground) -> None:
    base = Material(VEGETATION if ground.grassy else SIDEWALK, ground.base, grain=0.16, upward=1.0)
    canvas.polygon([(-900, 0, -5), (900, 0, -5), (900, 0, FAR), (-900, 0, FAR)], base)
    road = Material(ROAD, ground.asphalt, grain=0.12, upward=1.0)
    canvas.polygon(_strip(ground, -ground.half, ground.half, 0.0, 150.0), road)
    for side in (-1, 1):
        _paint_walk(canvas, ground, side)
    _paint_markings(canvas, ground)


def _strip(ground: Ground, left: float, right: float, start: float, stop: float) -> list[Vec3]:
    """The outline of a band along the road."""
    between = [z for z in (4.0, 9, 15, 22, 30, 40, 52, 66, 82, 100, 125) if start < z < stop]
    stations = [start, *between, stop]
    go = [(left + ground.middle(z), 0.0, z) for z in stations]
    back = [(right + ground.middle(z), 0.0, z) for z in reversed(stations)]
    return go + back


def _paint_walk(canvas: Canvas, ground: Ground, side: int) -> None:
    inner, outer = side * ground.half, side * (ground.half + ground.walks[(side + 1) // 2])
    slab = Material(SIDEWALK, ground.paving, grain=0.10, upward=1.0)
    canvas.polygon(_strip(ground, inner, outer, 0.0, 150.0), slab)
    edge = Material(SIDEWALK, mix(ground.paving, (0.9, 0.9, 0.9), 0.3), grain=0.05, upward=1.0)
    canvas.polygon(_strip(ground, inner, inner + side * ground.kerb * 1.6, 0.0, 70.0), edge)
    gutter = Material(ROAD, shade(ground.asphalt, 0.7), grain=0.05, upward=1.0)
    canvas.polygon(_strip(ground, inner - side * 0.22, inner, 0.0, 60.0), gutter)


def _paint_markings(canvas: Canvas, ground: Ground) -> None:
    line_paint = Material(ROAD, ground.marking, grain=0.08, upward=0.97)
    lane = 2 * ground.half / ground.lanes
    for line in range(1, ground.lanes):
        at = -ground.half + line * lane
        if 2 * line == ground.lanes and ground.dash > 3.0:
            canvas.polygon(_strip(ground, at - 0.08, at + 0.08, 0.0, 90.0), line_paint)
            continue
        z = 0.0
        while z < 60.0:
            canvas.polygon(_strip(ground, at - 0.08, at + 0.08, z, z + ground.dash), line_paint)
            z += ground.dash * 2.2
    if ground.crossing is not None:
        x = -ground.half + 0.4
        while x < ground.half - 0.6:
            canvas.polygon(_strip(ground, x, x + 0.5, ground.crossing, ground.crossing + 3.0), line_paint)
            x += 1.0


def _paint_skyline(canvas: Canvas, scene: Scene) -> None:
    for x, width, height, wooded in scene.skyline:
        if wooded:
            tone = Material(VEGETATION, (0.24, 0.33, 0.22), grain=0.15, upward=0.4)
            for share in (0.0, 0.3, 0.6, 0.9):
                canvas.ellipse((x + share * width, 0.3 * height, 200), (0.3 * width, 0.8 * height), tone)
        else:
            tone = Material(BUILDING, (0.48, 0.49, 0.53), grain=0.06)
            canvas.polygon(_wall((x, 210.0), (x + width, 210.0), 0.0, height), tone)


# --- buildings and plants -----------------------------------------------------------------------


def _wall(start: Point, stop: Point, low: float, high: float) -> list[Vec3]:
    """An upright rectangle over the ground from ``start`` to ``stop`` (x, z), from ``low`` to ``high``."""
    (x, z), (x1, z1) = start, stop
    return [(x, low, z), (x1, low, z1), (x1, high, z1), (x, high, z)]


def _paint_building(canvas: Canvas, b: Building, scene: Scene) -> None:
    height = b.storeys * b.storey
    near, along, across = (b.x, b.z), (b.x, b.z1), (b.x + b.side * b.depth, b.z)
    sunny = 1.0 + 0.18 * scene.sun * scene.sun_side * -b.side
    street = Material(BUILDING, shade(b.colour, sunny), grain=0.07)
    front = Material(BUILDING, shade(b.colour, 0.78 + 0.1 * scene.sun), grain=0.07)
    if canvas.polygon(_wall(near, across, 0, height), front):
        _paint_windows(canvas, b, near, across, 0.75)
    _paint_roof(canvas, b, height, across[0])
    walled = canvas.polygon(_wall(near, along, 0, height), street)
    if b.shop is not None:
        top = min(0.85 * b.storey, 2.9)
        band = Material(BUILDING, b.shop, grain=0.05)
        x = b.x - b.side * 0.02
        canvas.polygon(_wall((x, b.z), (x, b.z1), top, top + 0.6), band)
    if walled:
        _paint_windows(canvas, b, near, along, sunny)
    if scene.sun > 0.1 and scene.sun_side * b.side > 0:
        reach = b.x - b.side * min(height * 0.6 * abs(scene.sun_side), 12.0)
        canvas.shadow([(b.x, 0, b.z), (b.x, 0, b.z1), (reach, 0, b.z1), (reach, 0, b.z)], 0.55)


def _paint_roof(canvas: Canvas, b: Building, height: float, far: float) -> None:
    roof = Material(BUILDING, b.roof, grain=0.08, upward=0.8)
    if b.gable > 0:
        x, top = (b.x + far) / 2, height + b.gable
        canvas.polygon([(b.x, height, b.z), (far, height, b.z), (x, top, b.z)], roof)
        canvas.polygon([(b.x, height, b.z), (b.x, height, b.z1), (x, top, b.z1), (x, top, b.z)], roof)
    else:
        rim = Material(BUILDING, b.trim, grain=0.04, upward=0.6)
        canvas.polygon(_wall((b.x, b.z), (b.x, b.z1), height, height + 0.4), rim)


def _paint_windows(canvas: Canvas, b: Building, start: Point, stop: Point, light: float) -> None:
    """A grid of windows on the vertical face over the ground segment from ``start`` to ``stop`` (x, z)."""
    nearest = max(min(start[1], stop[1]), 2.0)
    if canvas.width_px((b.x, 1.0, nearest), b.window[1] * b.storey) < 1.5:
        return
    columns = max(1, int(math.hypot(stop[0] - start[0], stop[1] - start[1]) / b.bay))
    random = generator("windows", b.seed).random((2, columns, b.storeys), dtype=np.float32)
    column, floor = (axis.ravel() for axis in np.mgrid[:columns, : b.storeys].astype(np.float32))
    left = (column + 0.5 * (1 - b.window[0])) / columns
    sill = np.where((floor == 0) & (b.shop is not None), 0.15, 0.5) * (1 - b.window[1])
    low = (floor + sill) / b.storeys
    boxes = np.stack([left, low, left + b.window[0] / columns, low + b.window[1] / b.storeys], axis=1)
    panes = [
        Material(
            BUILDING,
            shade(b.glass, (0.8 + 0.4 * tone) * light),
            grain=0.03,
            glow=shade(_WARM, 0.63 + 0.2 * tone) if chance < b.lit else (0.0, 0.0, 0.0),
        )
        for tone, chance in zip(random[0].ravel().tolist(), random[1].ravel().tolist(), strict=True)
    ]
    canvas.panes((start[0], 0, start[1]), (stop[0], 0, stop[1]), b.storeys * b.storey, boxes, panes)


def _paint_tree(canvas: Canvas, t: Tree, scene: Scene) -> None:
    if not canvas.sees((t.x, 0.5 * t.height, t.z), t.height + 2 * t.crown):
        return
    _round_shadow(canvas, scene, t.x, t.z, t.crown, 0.5)
    trunk = Material(VEGETATION, t.bark, grain=0.1)
    canvas.post((t.x, 0, t.z), (t.x, 0.6 * t.height, t.z), 0.06 * t.height, trunk, least=2.0)
    if t.conifer:
        for level in range(4):
            low = t.height * (0.12 + 0.2 * level)
            reach = t.crown * 0.9 * (1 - 0.22 * level)
            leaf = Material(VEGETATION, shade(t.colour, 0.65 + 0.12 * level), grain=0.3, upward=0.5)
            top = low + 0.36 * t.height
            canvas.polygon([(t.x - reach, low, t.z), (t.x + reach, low, t.z), (t.x, top, t.z)], leaf)
        return
    blobs = generator("tree", t.seed).random((9 if t.z < 40 else 5, 4))
    middle = t.height - t.crown
    for number, (angle, out, radius, tone) in enumerate(blobs.tolist()):
        distance = 0.62 * t.crown * out**0.5
        dx, dy = distance * math.cos(6.283 * angle), distance * math.sin(6.283 * angle)
        size = t.crown * (0.4 + 0.3 * radius)
        lift = 0.7 + 0.3 * (dy / t.crown + 0.5) + 0.25 * (tone - 0.5) + 0.02 * number
        leaf = Material(VEGETATION, shade(t.colour, lift), grain=0.32, upward=0.45)
        canvas.ellipse((t.x + dx, middle + dy, t.z), (size, 0.9 * size), leaf)


def _paint_hedge(canvas: Canvas, h: Hedge) -> None:
    far = h.x + h.side * 0.8
    leaf = Material(VEGETATION, h.colour, grain=0.3, upward=0.3)
    end = Material(VEGETATION, shade(h.colour, 0.8), grain=0.3, upward=0.3)
    canvas.polygon(_wall((h.x, h.z), (far, h.z), 0, h.height), end)
    canvas.polygon(_wall((h.x, h.z), (h.x, h.z1), 0, h.height), leaf)
    top = Material(VEGETATION, shade(h.colour, 1.15), grain=0.3, upward=0.8)
    corners = [(h.x, h.height, h.z), (far, h.height, h.z), (far, h.height, h.z1), (h.x, h.height, h.z1)]
    canvas.polygon(corners, top)


def _round_shadow(canvas: Canvas, scene: Scene, x: float, z: float, radius: float, strength: float) -> None:
    """A soft shadow of a round object, moved away from the sun."""
    if scene.sun < 0.1:
        return
    x += 0.8 * radius * scene.sun_side
    corners = [
        (x + radius * math.cos(a), 0.0, z + 0.7 * radius * math.sin(a))
        for a in (0.0, 0.8, 1.6, 2.4, 3.14, 3.9, 4.7, 5.5)
    ]
    canvas.shadow(corners, strength)


# --- cars, poles, people ------------------------------------------------------------------------


def _paint_car(canvas: Canvas, car: Car, scene: Scene, lamps: list[Lamp]) -> None:
    visible = canvas.sees((car.x, 0.5 * car.height, car.z), car.length)
    if math.hypot(car.x - scene.camera.x, car.z) < 3.5 or not (visible or car.lights):
        return
    sin, cos = math.sin(car.heading), math.cos(car.heading)

    def at(along: float, across: float, up: float) -> Vec3:
        """Car axes (forward, right, up) to the world."""
        return car.x + along * sin + across * cos, up, car.z + along * cos - across * sin

    half, wide = car.length / 2, car.width / 2
    waist = 0.56 * car.height
    shadow = [at(a, b, 0.0) for a, b in ((half, wide), (half, -wide), (-half, -wide), (-half, wide))]
    canvas.shadow(shadow, 0.75)
    _paint_body(canvas, car, scene, at, lamps)
    bonnet = Material(CAR, shade(car.colour, 1.12), grain=0.03, upward=0.8)
    deck = [(-half, -wide, waist), (-half, wide, waist), (half, wide, waist), (half, -wide, waist)]
    canvas.polygon([at(*c) for c in deck], bonnet)
    _paint_cabin(canvas, car, scene, at, bonnet)


def _paint_body(canvas: Canvas, car: Car, scene: Scene, at: _Place, lamps: list[Lamp]) -> None:
    """The sides below the waist, with wheels, lights and bumpers."""
    half, wide = car.length / 2, car.width / 2
    waist = 0.56 * car.height
    body = [_face(axis, sign, half, wide, 0.22, waist) for axis in (0, 1) for sign in (-1, 1)]
    dark = Material(CAR, (0.05, 0.05, 0.06), grain=0.02)
    for corners, (along, across) in _faces(scene, at, body):
        tone = 0.82 + 0.2 * abs(along) + 0.12 * scene.sun * across
        canvas.polygon([at(*c) for c in corners], Material(CAR, shade(car.colour, tone), grain=0.03))
        if across:
            _paint_wheels(canvas, at, half, across * wide, dark)
        else:
            _paint_lights(canvas, car, at, along, wide, waist, lamps)
            canvas.polygon([at(a, b, 0.1 if u < 0.3 else 0.26) for a, b, u in corners], dark)


def _paint_cabin(canvas: Canvas, car: Car, scene: Scene, at: _Place, roof: Material) -> None:
    """Four sloping sides with a pane in each, and the roof."""
    half, wide = car.length / 2, car.width / 2
    rear, front = -half + car.cabin[0] * car.length, -half + car.cabin[1] * car.length
    low, high, inset = 0.56 * car.height, car.height, 0.86 * wide
    slope = 0.16 * car.length * (0.5 if car.height > 1.8 else 1.0)
    rear_left, rear_right = (rear, -wide, low), (rear, wide, low)
    front_left, front_right = (front, -wide, low), (front, wide, low)
    top_rear_left, top_rear_right = (rear + slope / 2, -inset, high), (rear + slope / 2, inset, high)
    top_front_left, top_front_right = (front - slope, -inset, high), (front - slope, inset, high)
    sides: list[_Side] = [
        ([rear_left, rear_right, top_rear_right, top_rear_left], (-1, 0)),
        ([front_left, front_right, top_front_right, top_front_left], (1, 0)),
        ([rear_left, front_left, top_front_left, top_rear_left], (0, -1)),
        ([rear_right, front_right, top_front_right, top_rear_right], (0, 1)),
    ]
    glass = Material(CAR, (0.16, 0.19, 0.23), grain=0.02)
    for corners, _ in _faces(scene, at, sides):
        canvas.polygon([at(*c) for c in corners], Material(CAR, shade(car.colour, 0.95), grain=0.03))
        middle = [sum(c[i] for c in corners) / 4 for i in range(3)]
        pane = [tuple(m + 0.78 * (v - m) for v, m in zip(c, middle, strict=True)) for c in corners]
        canvas.polygon([at(*p) for p in pane], glass)
    top = [top_rear_left, top_rear_right, top_front_right, top_front_left]
    canvas.polygon([at(*c) for c in top], roof)


def _face(axis: int, sign: int, half: float, wide: float, low: float, high: float) -> _Side:
    """One vertical face of the body in car axes."""
    if axis == 0:
        x = sign * half
        return [(x, -wide, low), (x, wide, low), (x, wide, high), (x, -wide, high)], (sign, 0)
    y = sign * wide
    return [(-half, y, low), (half, y, low), (half, y, high), (-half, y, high)], (0, sign)


def _faces(scene: Scene, at: _Place, sides: list[_Side]) -> list[_Side]:
    """The faces that are turned to the camera, far ones first."""
    faces = []
    for corners, (along, across) in sides:
        middle = [sum(c[i] for c in corners) / 4 for i in range(3)]
        centre = at(*middle)
        ahead = at(middle[0] + along, middle[1] + across, middle[2])
        to_camera = (scene.camera.x - centre[0], -centre[2])
        if (ahead[0] - centre[0]) * to_camera[0] + (ahead[2] - centre[2]) * to_camera[1] > 0:
            faces.append((math.hypot(*to_camera), corners, (along, across)))
    faces.sort(key=lambda item: item[0], reverse=True)
    return [(corners, way) for _, corners, way in faces]


def _paint_wheels(canvas: Canvas, at: _Place, half: float, side: float, dark: Material) -> None:
    hub = Material(CAR, (0.5, 0.5, 0.52), grain=0.02)
    for along in (-0.62 * half, 0.62 * half):
        for radius, material in ((0.34, dark), (0.17, hub)):
            ring = [
                at(along + radius * math.cos(a), side * 1.01, 0.34 + radius * math.sin(a))
                for a in (0.0, 0.785, 1.571, 2.356, 3.142, 3.927, 4.712, 5.498)
            ]
            canvas.polygon(ring, material)


def _paint_lights(
    canvas: Canvas, car: Car, at: _Place, along: int, wide: float, waist: float, lamps: list[Lamp]
) -> None:
    colour = _WHITE if along > 0 else _RED
    glow = colour if car.lights else (0.0, 0.0, 0.0)
    material = Material(CAR, mix(colour, (0.7, 0.7, 0.7), 0.3), grain=0.0, glow=glow)
    face = along * car.length / 2 * 1.005
    low, high = 0.62 * waist, 0.92 * waist
    for side in (-1, 1):
        inner, outer = side * 0.55 * wide, side * 0.95 * wide
        corners = ((inner, low), (outer, low), (outer, high), (inner, high))
        canvas.polygon([at(face, across, up) for across, up in corners], material)
    if car.lights:
        lamps.append(Lamp(at(face + along * 1.2, 0.0, 0.6), 3.0 if along > 0 else 1.2, colour))


def _paint_pole(canvas: Canvas, p: Pole, lamps: list[Lamp]) -> None:
    metal = Material(POLE, p.colour, grain=0.04)
    canvas.post((p.x, 0, p.z), (p.x, p.height, p.z), p.width, metal)
    if p.kind == "lamp":
        end = (p.x + p.arm, p.height + 0.2, p.z)
        canvas.post((p.x, p.height, p.z), end, 0.1, metal, least=2.0)
        canvas.ellipse(end, (0.34, 0.16), Material(POLE, (0.8, 0.8, 0.75), grain=0.0, glow=_WARM))
        lamps.append(Lamp((end[0], end[1] - 0.3, end[2]), 6.0, _WARM))
    elif p.kind == "sign":
        _paint_plate(canvas, p)
    elif p.kind == "signal":
        box = Material(POLE, (0.08, 0.08, 0.08), grain=0.0)
        canvas.polygon(_board(p, p.z, 0.19, 0.5), box)
        for number, colour in enumerate(((0.95, 0.1, 0.08), (0.95, 0.65, 0.1), (0.1, 0.85, 0.35))):
            is_on = number == p.shape
            glow = colour if is_on else (0.0, 0.0, 0.0)
            bulb = Material(POLE, colour if is_on else shade(colour, 0.25), grain=0.0, glow=glow)
            canvas.ellipse((p.x, p.height + 0.3 - 0.3 * number, p.z - 0.01), (0.12, 0.12), bulb)


def _paint_plate(canvas: Canvas, p: Pole) -> None:
    plate = Material(POLE, p.plate, grain=0.02)
    rim = Material(POLE, (0.92, 0.92, 0.92), grain=0.02)
    z, size = p.z - 0.05, 0.38
    if p.shape == 0:
        canvas.ellipse((p.x, p.height, z), (size, size), rim)
        canvas.ellipse((p.x, p.height, z - 0.01), (0.8 * size, 0.8 * size), plate)
    elif p.shape == 1:
        low = p.height - size
        canvas.polygon([(p.x - size, low, z), (p.x + size, low, z), (p.x, p.height + size, z)], plate)
    else:
        canvas.polygon(_board(p, z, 1.2 * size, 0.8 * size), plate)


def _board(p: Pole, z: float, across: float, up: float) -> list[Vec3]:
    """A rectangle around the pole's top, in front of it at ``z``."""
    return _wall((p.x - across, z), (p.x + across, z), p.height - up, p.height + up)


def _paint_pedestrian(canvas: Canvas, p: Pedestrian, scene: Scene) -> None:
    h, x, z = p.height, p.x, p.z
    if not canvas.sees((x, 0.5 * h, z), h):
        return
    _round_shadow(canvas, scene, x, z, 0.3, 0.5)
    legs = Material(PEDESTRIAN, p.trousers, grain=0.05)
    shirt = Material(PEDESTRIAN, p.shirt, grain=0.06)
    skin = Material(PEDESTRIAN, p.skin, grain=0.02)
    for step in (-1, 1):
        foot = x + step * (0.05 + p.stride * 0.5) * h * 0.5
        canvas.post((foot, 0, z), (x + step * 0.045 * h, 0.5 * h, z), 0.085 * h, legs, least=2.0)
        hand = x + step * (0.14 + 0.1 * abs(p.stride)) * h
        canvas.post((hand, 0.46 * h, z), (x + step * 0.11 * h, 0.79 * h, z), 0.06 * h, shirt, least=1.6)
    bottom = 0.3 if p.coat else 0.46
    torso = ((-0.115, bottom), (0.115, bottom), (0.13, 0.83), (-0.13, 0.83))
    canvas.polygon([(x + across * h, up * h, z) for across, up in torso], shirt)
    canvas.ellipse((x, 0.91 * h, z), (0.065 * h, 0.085 * h), skin)
    hair = Material(PEDESTRIAN, shade(p.trousers, 0.4), grain=0.02)
    canvas.ellipse((x, 0.955 * h, z), (0.06 * h, 0.045 * h), hair)


def _add_texture(rng: np.random.Generator, layers: Layers) -> None:
    """Give every surface its texture, in place: grain in the image, patches and slabs on the ground."""
    height, width = layers.label.shape
    fine = rng.standard_normal((height, width), dtype=np.float32) * 0.6
    coarse = rng.standard_normal((64, 64), dtype=np.float32)
    x = (layers.points[..., 0] * 1.3).astype(np.int32) & 63
    z = (layers.points[..., 2] * 0.7 + layers.points[..., 1] * 2.0).astype(np.int32) & 63
    texture = 1.0 + layers.grain * (fine + 0.7 * coarse[x, z])
    slabs = (layers.label == SIDEWALK) & (layers.inverse_depth > 1 / 16)
    joint = ((layers.points[..., 0] % 0.9) < 0.09) | ((layers.points[..., 2] % 0.9) < 0.14)
    texture -= 0.16 * (slabs & joint & (layers.upward == 1.0))
    layers.albedo *= np.maximum(texture, 0.1)[..., None]
