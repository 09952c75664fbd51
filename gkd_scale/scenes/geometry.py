"""A pinhole camera, and a canvas of flat primitives seen through it.

World axes are metres: X right, Y up, Z along the road; the camera stands at (x, height, 0). A
primitive is a polygon or an ellipse with one material. The canvas keeps *one* image of primitive
numbers; colour, class, depth, glow and texture are looked up from a table of materials, so that
the label can never disagree with the picture. Inverse depth of a plane is affine in image
coordinates, which makes the depth of every pixel exact for three coefficients a primitive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from gkd_scale.types import Size, UInt8Array

Vec3 = tuple[float, float, float]
Point = tuple[float, float]
Floats = npt.NDArray[np.float32]

SUPERSAMPLING = 2
NEAR = 0.4
"""Metres in front of the camera where polygons are cut."""


@dataclass(frozen=True)
class Camera:
    """``height`` and ``x`` in metres, ``pitch`` (down) and ``yaw`` in radians, ``focal`` in image widths."""

    size: Size
    x: float = 0.0
    height: float = 1.6
    pitch: float = 0.0
    yaw: float = 0.0
    focal: float = 0.8
    _cos: tuple[float, float] = field(init=False, repr=False)
    _sin: tuple[float, float] = field(init=False, repr=False)
    focal_px: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cos", (math.cos(self.yaw), math.cos(self.pitch)))
        object.__setattr__(self, "_sin", (math.sin(self.yaw), math.sin(self.pitch)))
        object.__setattr__(self, "focal_px", self.focal * self.size[1])

    def to_camera(self, point: Vec3) -> Vec3:
        """World to camera axes (right, up, forward)."""
        (cos_yaw, cos_pitch), (sin_yaw, sin_pitch) = self._cos, self._sin
        px, y, pz = point[0] - self.x, point[1] - self.height, point[2]
        x = cos_yaw * px - sin_yaw * pz
        z = sin_yaw * px + cos_yaw * pz
        return x, cos_pitch * y + sin_pitch * z, cos_pitch * z - sin_pitch * y

    def rays(self) -> Floats:
        """(H, W, 3) world directions of the pixel centres, scaled so that depth times ray is the offset."""
        height, width = self.size
        col = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / np.float32(self.focal_px)
        row = (height / 2 - np.arange(height, dtype=np.float32) - 0.5) / np.float32(self.focal_px)
        right, up = np.broadcast_arrays(col[None, :], row[:, None])
        y = self._cos[1] * up - self._sin[1]
        ahead = self._sin[1] * up + self._cos[1]
        x = self._cos[0] * right + self._sin[0] * ahead
        z = -self._sin[0] * right + self._cos[0] * ahead
        return np.stack([x, y, z], axis=-1).astype(np.float32)


class Material(NamedTuple):
    """``colour`` 0..1; ``glow`` its own light; ``grain`` texture strength; ``upward`` 1: snow lies on it."""

    label: int
    colour: Vec3
    grain: float = 0.05
    upward: float = 0.0
    glow: Vec3 = (0.0, 0.0, 0.0)


_forward = itemgetter(2)


def shade(colour: Vec3, factor: float) -> Vec3:
    """``colour`` made brighter or darker."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def mix(a: Vec3, b: Vec3, share: float) -> Vec3:
    """``a`` with ``share`` of ``b``."""
    keep = 1.0 - share
    return keep * a[0] + share * b[0], keep * a[1] + share * b[1], keep * a[2] + share * b[2]


@dataclass
class Layers:
    """The painter's output and the weather's input; all at the size of the image.

    ``albedo`` (H, W, 3) 0..1; ``label`` (H, W) uint8; ``inverse_depth`` (H, W) 1/m, 0 in the sky;
    ``glow`` (H, W, 3) own light; ``grain`` and ``upward`` (H, W) as in :class:`Material`;
    ``shadow`` (H, W) 0..1; ``sky`` (H, W) share of the pixel that is sky; ``points`` (H, W, 3) metres.
    """

    albedo: Floats
    label: UInt8Array
    inverse_depth: Floats
    glow: Floats
    grain: Floats
    upward: Floats
    shadow: Floats
    sky: Floats
    points: Floats


class Canvas:
    """Draws primitives back to front. Number 0 is the sky."""

    def __init__(self, camera: Camera, sky_label: int) -> None:
        self.camera = camera
        height, width = camera.size
        canvas_size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        self._middle = (canvas_size[0] / 2, canvas_size[1] / 2)
        self._scale = SUPERSAMPLING * camera.focal_px
        self._limit = 20.0 * width
        self._ids = Image.new("I", canvas_size, 0)
        self._draw = ImageDraw.Draw(self._ids)
        self._shadow = Image.new("L", canvas_size, 0)
        self._shadow_draw = ImageDraw.Draw(self._shadow)
        self._materials: list[Material] = [Material(sky_label, (0.0, 0.0, 0.0), grain=0.0)]
        self._planes: list[Vec3] = [(0.0, 0.0, 0.0)]

    def sees(self, centre: Vec3, radius: float) -> bool:
        """Whether a ball of ``radius`` metres could touch the picture."""
        x, y, z = self.camera.to_camera(centre)
        if z + radius < NEAR:
            return False
        height, width = self.camera.size
        half_col, half_row = width / (2 * self.camera.focal_px), height / (2 * self.camera.focal_px)
        across, up = half_col * z + radius * (1 + half_col), half_row * z + radius * (1 + half_row)
        return abs(x) < across and abs(y) < up

    def polygon(self, corners: Sequence[Vec3], material: Material) -> bool:
        """Draw a flat polygon of world points, cut at the near plane; returns whether it can be seen."""
        in_camera, flat = self._see(corners)
        if not flat:
            return False
        plane = self._plane(in_camera)
        if plane is not None:
            self._draw.polygon(flat, fill=self._add(material, plane))
        return True

    def panes(self, foot: Vec3, end: Vec3, top: float, boxes: Floats, materials: Sequence[Material]) -> None:
        """Draw rectangles on the vertical wall from ``foot`` to ``end``, ``top`` metres high.

        ``boxes`` (n, 4): left, low, right, high as shares of the wall. Rectangles that reach behind
        the near plane are left out.
        """
        a, b = np.array(self.camera.to_camera(foot)), np.array(self.camera.to_camera(end))
        c = np.array(self.camera.to_camera((foot[0], foot[1] + top, foot[2])))
        plane = self._plane([(a[0], a[1], a[2]), (b[0], b[1], b[2]), (c[0], c[1], c[2])])
        if plane is None:
            return
        along, up = boxes[:, (0, 2, 2, 0), None], boxes[:, (1, 1, 3, 3), None]
        in_camera = a + along * (b - a) + up * (c - a)
        depth = np.maximum(in_camera[..., 2], 1e-3)
        scale = self._scale / depth
        cols, rows = self._middle[0] + scale * in_camera[..., 0], self._middle[1] - scale * in_camera[..., 1]
        visible = in_camera[..., 2].min(axis=1) > NEAR
        for places, middle in ((cols, self._middle[0]), (rows, self._middle[1])):
            visible &= (places.max(axis=1) > 0) & (places.min(axis=1) < 2 * middle)
        flat = np.stack([cols, rows], axis=-1).reshape(len(boxes), 8).tolist()
        for number in np.flatnonzero(visible).tolist():
            self._draw.polygon(flat[number], fill=self._add(materials[number], plane))

    def ellipse(self, centre: Vec3, radii: Point, material: Material) -> None:
        """Draw an ellipse that faces the camera, ``radii`` in metres."""
        middle = self.camera.to_camera(centre)
        if middle[2] < NEAR:
            return
        col, row = self._to_canvas(middle)
        scale = self._scale / middle[2]
        across, up = max(radii[0] * scale, 0.6), max(radii[1] * scale, 0.6)
        box = [(col - across, row - up), (col + across, row + up)]
        if self._outside(box):
            return
        self._draw.ellipse(box, fill=self._add(material, (1 / middle[2], 0.0, 0.0)))

    def post(self, foot: Vec3, top: Vec3, width: float, material: Material, least: float = 2.4) -> None:
        """Draw a bar that faces the camera, ``width`` metres but at least ``least`` canvas pixels wide."""
        in_camera = self._clip([self.camera.to_camera(foot), self.camera.to_camera(top)], closed=False)
        if len(in_camera) < 2:
            return
        (x0, y0), (x1, y1) = self._to_canvas(in_camera[0]), self._to_canvas(in_camera[-1])
        half = [max(width * self._scale / p[2], least) / 2 for p in (in_camera[0], in_camera[-1])]
        length = math.hypot(x1 - x0, y1 - y0)
        if length < 1e-6:
            return
        nx, ny = (y1 - y0) / length, (x0 - x1) / length
        flat = [
            (x0 + nx * half[0], y0 + ny * half[0]),
            (x1 + nx * half[1], y1 + ny * half[1]),
            (x1 - nx * half[1], y1 - ny * half[1]),
            (x0 - nx * half[0], y0 - ny * half[0]),
        ]
        if not self._outside(flat):
            plane = (2 / (in_camera[0][2] + in_camera[-1][2]), 0.0, 0.0)
            self._draw.polygon(flat, fill=self._add(material, plane))

    def shadow(self, corners: Sequence[Vec3], strength: float) -> None:
        """Draw a shadow on the ground."""
        flat = self._see(corners)[1]
        if flat:
            self._shadow_draw.polygon(flat, fill=int(255 * strength))

    def width_px(self, point: Vec3, metres: float) -> float:
        """The image pixels that ``metres`` take at ``point``; 0 behind the camera."""
        depth = self.camera.to_camera(point)[2]
        return metres * self.camera.focal_px / depth if depth > NEAR else 0.0

    def develop(self) -> Layers:
        """Look up all values: colours are averaged over the subpixels, classes and depths are not."""
        ids = np.asarray(self._ids)
        height, width = self.camera.size
        table = np.array([m.colour for m in self._materials], dtype=np.float32)
        step = SUPERSAMPLING
        parts = [ids[i::step, j::step] for i in range(step) for j in range(step)]
        albedo = np.zeros((height, width, 3), np.float32)
        sky = np.zeros((height, width), np.float32)
        for part in parts:
            albedo += table[part]
            sky += part == 0
        centre = parts[-1]
        numbers = np.array(
            [(*p, *m.glow, m.grain, m.upward) for p, m in zip(self._planes, self._materials, strict=True)],
            dtype=np.float32,
        )[centre]
        col = (np.arange(width, dtype=np.float32) + 0.5 - width / 2)[None, :]
        row = (np.arange(height, dtype=np.float32) + 0.5 - height / 2)[:, None]
        inverse_depth = numbers[..., 0] + numbers[..., 1] * col + numbers[..., 2] * row
        np.clip(inverse_depth, 0.0, 1 / NEAR, out=inverse_depth)
        rays = self.camera.rays()
        points = rays / np.maximum(inverse_depth, 1e-3)[..., None]
        points += np.array([self.camera.x, self.camera.height, 0.0], dtype=np.float32)
        shadow = self._shadow.resize((width, height), Image.Resampling.BOX)
        return Layers(
            albedo=albedo / np.float32(len(parts)),
            label=np.array([m.label for m in self._materials], dtype=np.uint8)[centre],
            inverse_depth=inverse_depth,
            glow=numbers[..., 3:6],
            grain=numbers[..., 6],
            upward=numbers[..., 7],
            shadow=np.asarray(shadow, dtype=np.float32) / np.float32(255),
            sky=sky / np.float32(len(parts)),
            points=points,
        )

    def _add(self, material: Material, plane: Vec3) -> int:
        self._materials.append(material)
        self._planes.append(plane)
        return len(self._materials) - 1

    def _to_canvas(self, point: Vec3) -> Point:
        """Camera axes to canvas pixels (column, row), kept within reach of the drawing routines."""
        scale, limit = self._scale / point[2], self._limit
        col, row = self._middle[0] + scale * point[0], self._middle[1] - scale * point[1]
        if -limit < col < limit and -limit < row < limit:
            return col, row
        return min(max(col, -limit), limit), min(max(row, -limit), limit)

    def _see(self, corners: Sequence[Vec3]) -> tuple[list[Vec3], list[Point]]:
        """World points in camera axes, cut at the near plane, and on the canvas; empty if unseen."""
        in_camera = self._clip([self.camera.to_camera(corner) for corner in corners])
        flat = [self._to_canvas(point) for point in in_camera]
        return ([], []) if len(flat) < 3 or self._outside(flat) else (in_camera, flat)

    def _outside(self, flat: Sequence[Point]) -> bool:
        cols, rows = zip(*flat, strict=True)
        width, height = 2 * self._middle[0], 2 * self._middle[1]
        return max(cols) < 0 or min(cols) > width or max(rows) < 0 or min(rows) > height

    def _plane(self, in_camera: Sequence[Vec3]) -> Vec3 | None:
        """Coefficients of 1/depth over (1, column - centre, row - centre); None for a plane seen edge-on."""
        a, b, c = in_camera[0], in_camera[len(in_camera) // 3], in_camera[2 * len(in_camera) // 3]
        ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        offset = nx * a[0] + ny * a[1] + nz * a[2]
        if abs(offset) < 1e-7:
            return None
        focal = self.camera.focal_px
        return nz / offset, nx / (offset * focal), -ny / (offset * focal)

    @staticmethod
    def _clip(points: list[Vec3], closed: bool = True) -> list[Vec3]:
        """Cut at the near plane (Sutherland and Hodgman)."""
        if min(points, key=_forward)[2] >= NEAR:
            return points
        result: list[Vec3] = []
        for i, point in enumerate(points):
            if i == 0 and not closed:
                if point[2] >= NEAR:
                    result.append(point)
                continue
            before = points[i - 1]
            if (point[2] >= NEAR) != (before[2] >= NEAR):
                t = (NEAR - before[2]) / (point[2] - before[2])
                x, y = (before[axis] + t * (point[axis] - before[axis]) for axis in (0, 1))
                result.append((x, y, NEAR))
            if point[2] >= NEAR:
                result.append(point)
        return result
