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


def _autocontrast(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, _: float) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, **_filling(image))


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(image, max(1, int(bits)))


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: Image.Image, add: float) -> Image.Image:
    table = [min(255, value + int(add)) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _color(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _sharpness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(factor)


def _shear_x(image: Image.Image, factor: float) -> Image.Image:
    return _affine(image, (1, factor, 0, 0, 1, 0))


def _shear_y(image: Image.Image, factor: float) -> Image.Image:
    return _affine(image, (1, 0, 0, factor, 1, 0))


def _translate_x(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, (1, 0, share * image.width, 0, 1, 0))


def _translate_y(image: Image.Image, share: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, share * image.height))


def _affine(image: Image.Image, data: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, data, **_filling(image))


def _filling(image: Image.Image) -> dict[str, Any]:
    """Options of geometry: pixels are interpolated, the ids of a label (one channel) are not."""
    if image.mode == "L":
        return {"resample": Image.Resampling.NEAREST, "fillcolor": IGNORE}
    return {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}


_Operation = Callable[[Image.Image, float], Image.Image]

# Name: the operation, and its argument at strength 0 and at strength 1; signed ones go either way.
_OPERATIONS: dict[str, tuple[_Operation, float, float, bool]] = {
    "autocontrast": (_autocontrast, 0, 0, False),
    "equalize": (_equalize, 0, 0, False),
    "invert": (_invert, 0, 0, False),
    "rotate": (_rotate, 0, 30, True),
    "posterize": (_posterize, 4, 0, False),
    "solarize": (_solarize, 256, 0, False),
    "solarize_add": (_solarize_add, 0, 110, False),
    "color": (_color, 0, 0.9, True),
    "contrast": (_contrast, 0, 0.9, True),
    "brightness": (_brightness, 0, 0.9, True),
    "sharpness": (_sharpness, 0, 0.9, True),
    "shear_x": (_shear_x, 0, 0.3, True),
    "shear_y": (_shear_y, 0, 0.3, True),
    "translate_x": (_translate_x, 0, 0.45, True),
    "translate_y": (_translate_y, 0, 0.45, True),
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
