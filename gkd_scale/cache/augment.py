"""RandAugment on 8-bit pixels, before they are encoded: what was drawn is recorded, nothing is replayed.

The operations and strengths are those of timm's ``rand-m9-mstd0.5-inc1``, the recipe of DeiT: each of
``ops`` draws picks one of fifteen operations, applies it with probability one half, at a magnitude from a
normal distribution around ``magnitude`` of 10. Geometry leaves the mean colour of ImageNet at the border.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from gkd_scale.randomness import generator
from gkd_scale.types import IGNORE

FILL = (124, 116, 104)
"""The mean colour of ImageNet, which fills the border that geometry uncovers."""

_PROBABILITY = 0.5
_SPREAD = 0.5


def _solarize_add(image: Image.Image, add: float) -> Image.Image:
    table = [min(255, value + int(add)) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _affine(image: Image.Image, data: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, data, **_options(image))


def _options(image: Image.Image) -> dict[str, Any]:
    """Options of geometry: pixels are interpolated, the ids of a label (one channel) are not."""
    if image.mode == "L":
        return {"resample": Image.Resampling.NEAREST, "fillcolor": IGNORE}
    return {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}


_Operation = Callable[[Image.Image, float], Image.Image]

# Name: the operation, and its argument at strength 0 and at strength 1; signed ones go either way.
_OPERATIONS: dict[str, tuple[_Operation, float, float, bool]] = {
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), 0, 0, False),
    "equalize": (lambda image, _: ImageOps.equalize(image), 0, 0, False),
    "invert": (lambda image, _: ImageOps.invert(image), 0, 0, False),
    "rotate": (lambda image, degrees: image.rotate(degrees, **_options(image)), 0, 30, True),
    "posterize": (lambda image, bits: ImageOps.posterize(image, max(1, int(bits))), 4, 0, False),
    "solarize": (lambda image, threshold: ImageOps.solarize(image, int(threshold)), 256, 0, False),
    "solarize_add": (_solarize_add, 0, 110, False),
    "color": (lambda image, factor: ImageEnhance.Color(image).enhance(factor), 0, 0.9, True),
    "contrast": (lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), 0, 0.9, True),
    "brightness": (lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), 0, 0.9, True),
    "sharpness": (lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), 0, 0.9, True),
    "shear_x": (lambda image, factor: _affine(image, (1, factor, 0, 0, 1, 0)), 0, 0.3, True),
    "shear_y": (lambda image, factor: _affine(image, (1, 0, 0, factor, 1, 0)), 0, 0.3, True),
    "translate_x": (lambda image, share: _affine(image, (1, 0, share * image.width, 0, 1, 0)), 0, 0.45, True),
    "translate_y": (
        lambda image, share: _affine(image, (1, 0, 0, 0, 1, share * image.height)),
        0,
        0.45,
        True,
    ),
}
_GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_ENHANCE = ("color", "contrast", "brightness", "sharpness")


def draw(sid: str, view: int, seed: int, ops: int, magnitude: float) -> list[tuple[str, float]]:
    """The operations of a view and their arguments: pure in (seed, view, sid)."""
    if ops == 0:
        return []
    rng = generator("view.randaugment", seed, view, sid)
    names = list(_OPERATIONS)
    operations: list[tuple[str, float]] = []
    for _ in range(ops):
        name = names[int(rng.integers(len(names)))]
        applied = rng.random() < _PROBABILITY
        strength = float(np.clip(rng.normal(magnitude, _SPREAD), 0, 10)) / 10
        sign = -1 if rng.random() < 0.5 else 1
        _, weak, strong, signed = _OPERATIONS[name]
        value = weak + (strong - weak) * strength
        value = value * sign if signed else value
        if name in _ENHANCE:
            value = max(0.1, 1 + value)
        if applied:
            operations.append((name, round(value, 4)))
    return operations


def apply(image: Image.Image, operations: list[tuple[str, float]]) -> Image.Image:
    """An RGB image after the drawn operations."""
    for name, value in operations:
        image = _OPERATIONS[name][0](image, value)
    return image


def apply_geometry(label: Image.Image, operations: list[tuple[str, float]]) -> Image.Image:
    """A label of one channel after the drawn operations that move pixels."""
    return apply(label, [(name, value) for name, value in operations if name in _GEOMETRY])
