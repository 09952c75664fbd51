"""Unlabelled pictures of anything: the embedded analogue of ImageNet.

Two of five are textures and shapes in layers. Three of five put things of a street (cars, trees, facades,
people, poles) in any light before such a texture. None is a street.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from gkd_scale.randomness import generator
from gkd_scale.scenes.geometry import Floats
from gkd_scale.scenes.layout import furniture
from gkd_scale.scenes.paint import paint
from gkd_scale.scenes.styles import random_style
from gkd_scale.scenes.weather import draw_weather, photograph, smooth_noise
from gkd_scale.types import Size, UInt8Array


def render_proxy(index: int, size: Size = (96, 128), seed: int = 0) -> UInt8Array:
    """(H, W, 3) uint8, a pure function of its arguments."""
    rng = generator("scenes", "proxy", seed, index)
    background = _texture(rng, size)
    for _ in range(int(rng.integers(0, 5))):
        background = _shapes(rng, background)
    if rng.random() < 0.6:
        return _with_things(rng, background)
    image = background * np.float32(rng.uniform(0.5, 1.2)) + np.float32(rng.uniform(-0.1, 0.1))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(0.04 * rng.random())
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _with_things(rng: np.random.Generator, background: Floats) -> UInt8Array:
    """Things of a random style before ``background``, both in the same weather."""
    size = background.shape[0], background.shape[1]
    style = random_style(rng)
    scene = furniture(style, rng, size)
    layers, lamps = paint(scene, rng)
    empty = layers.sky[..., None]
    layers.albedo = layers.albedo + empty * background
    layers.sky = np.zeros_like(layers.sky)
    layers.inverse_depth = np.where(layers.inverse_depth > 0, layers.inverse_depth, np.float32(1 / 25))
    weather = draw_weather(style, scene.sun, rng)
    return photograph(layers, lamps, scene.camera, weather, rng)


def _texture(rng: np.random.Generator, size: Size) -> Floats:
    """A coloured texture: two colours mixed by a pattern 0..1, a third by slow noise."""
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, size)[..., None]
    a, b, c = rng.random((3, 3), dtype=np.float32)
    slow = np.clip(0.5 + 0.4 * smooth_noise(rng, size, 2, 2), 0, 1)[..., None]
    strength = np.float32(0.6 * rng.random())
    return (a * pattern + b * (1 - pattern)) * (1 - strength * slow) + c * strength * slow


def _shapes(rng: np.random.Generator, image: Floats) -> Floats:
    """A few polygons, ellipses or lines filled with another texture."""
    height, width = image.shape[:2]
    mask = Image.new("L", (2 * width, 2 * height), 0)
    draw = ImageDraw.Draw(mask)
    kind = int(rng.integers(3))
    for _ in range(int(rng.integers(1, 7))):
        x, y = rng.uniform(0, 2 * width), rng.uniform(0, 2 * height)
        reach = 2 * height * rng.uniform(0.06, 0.45)
        if kind == 0:
            draw.ellipse([x - reach, y - reach * rng.uniform(0.3, 1), x + reach, y + reach * 0.6], fill=255)
        elif kind == 1:
            corners = int(rng.integers(3, 8))
            offsets = rng.uniform(-reach, reach, (corners, 2))
            draw.polygon([(x + float(dx), y + float(dy)) for dx, dy in offsets], fill=255)
        else:
            dx, dy = rng.uniform(-3 * reach, 3 * reach, 2)
            draw.line([(x, y), (x + float(dx), y + float(dy))], fill=255, width=int(rng.integers(2, 14)))
    small = mask.resize((width, height), Image.Resampling.BOX)
    share = np.asarray(small, dtype=np.float32)[..., None] / np.float32(255)
    return image * (1 - share) + _texture(rng, (height, width)) * share


def _noise(rng: np.random.Generator, size: Size) -> Floats:
    return np.clip(0.5 + 0.35 * smooth_noise(rng, size, int(rng.integers(2, 24))), 0, 1)


def _coordinates(rng: np.random.Generator, size: Size) -> tuple[Floats, Floats]:
    """Rotated coordinates, one unit a picture height, bent a little by noise."""
    height, width = size
    row, col = np.mgrid[:height, :width].astype(np.float32) / np.float32(height)
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    bend = np.float32(0.06 * rng.random()) * smooth_noise(rng, size, 3, 1)
    return cos * col + sin * row + bend, cos * row - sin * col + bend


def _grating(rng: np.random.Generator, size: Size) -> Floats:
    u, _ = _coordinates(rng, size)
    wave = np.sin(2 * np.pi * np.float32(rng.uniform(1.5, 22)) * u)
    return np.clip(0.5 + np.float32(rng.uniform(0.5, 3)) * wave, 0, 1).astype(np.float32)


def _checker(rng: np.random.Generator, size: Size) -> Floats:
    u, v = _coordinates(rng, size)
    cells = rng.uniform(2, 16, 2)
    return ((np.floor(u * cells[0]) + np.floor(v * cells[1])) % 2).astype(np.float32)


def _bricks(rng: np.random.Generator, size: Size) -> Floats:
    u, v = _coordinates(rng, size)
    rows = np.float32(rng.uniform(4, 18))
    line = v * rows
    along = u * rows * np.float32(rng.uniform(0.3, 1.0)) + 0.5 * np.floor(line)
    return (((line % 1) > 0.15) & ((along % 1) > 0.1)).astype(np.float32)


def _voronoi(rng: np.random.Generator, size: Size) -> Floats:
    u, v = _coordinates(rng, size)
    count = int(rng.integers(5, 24))
    middles = rng.uniform([-1, -1], [2, 2], (count, 2)).astype(np.float32)
    middles = middles * np.float32(0.6) + np.array([u.mean(), v.mean()], np.float32) * np.float32(0.4)
    squares = (u[..., None] - middles[:, 0]) ** 2 + (v[..., None] - middles[:, 1]) ** 2
    values: Floats = rng.random(count, dtype=np.float32)
    return values[squares.argmin(axis=-1)]


def _gradient(rng: np.random.Generator, size: Size) -> Floats:
    u, v = _coordinates(rng, size)
    field = u if rng.random() < 0.5 else np.sqrt(u * u + v * v)
    low, high = field.min(), field.max()
    return ((field - low) / (high - low + 1e-6)).astype(np.float32)


_PATTERNS: tuple[Callable[[np.random.Generator, Size], Floats], ...] = (
    _noise,
    _noise,
    _grating,
    _checker,
    _bricks,
    _voronoi,
    _gradient,
)
