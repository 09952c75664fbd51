"""The embedded data: labelled street scenes in six domains, and an unlabelled proxy set.

A picture is a pure function of (domain, index, size, seed). It is made in four steps, one module
each: a :class:`~.styles.Style` describes the look of the domain, :mod:`~.layout` draws a street of
that style in metres, :mod:`~.paint` turns it into colours, labels and depth through the camera of
:mod:`~.geometry`, and :mod:`~.weather` photographs it. :mod:`~.proxy` makes the unlabelled set.

``source`` is for training (indices of ``SPLITS["train"]``) and for selection (``SPLITS["val"]``);
``unseen_*`` are for testing only. The demo teacher is trained on :func:`render_random`: its scenes have
generators of another name, and styles from the whole style space, never one of the named ones.
"""

from __future__ import annotations

import numpy as np

from gkd_scale.errors import DataError, nearest
from gkd_scale.randomness import generator
from gkd_scale.scenes.layout import compose
from gkd_scale.scenes.paint import CLASSES, PALETTE, paint
from gkd_scale.scenes.proxy import render_proxy
from gkd_scale.scenes.styles import STYLES, Style, random_style
from gkd_scale.scenes.weather import draw_weather, photograph
from gkd_scale.types import Size, UInt8Array

__all__ = [
    "CLASSES",
    "DOMAINS",
    "GENERATOR",
    "PALETTE",
    "SIZE",
    "SPLITS",
    "STYLES",
    "UNSEEN",
    "Style",
    "random_style",
    "render",
    "render_proxy",
    "render_random",
]

SIZE: Size = (96, 128)
GENERATOR = 1
"""The version of the pictures: it grows with every change, so that data on disk is never mixed."""

DOMAINS: tuple[str, ...] = tuple(STYLES)
UNSEEN: tuple[str, ...] = tuple(name for name in STYLES if name.startswith("unseen_"))
SPLITS: dict[str, range] = {"train": range(1_000_000), "val": range(1_000_000, 2_000_000)}
"""Indices of the source domain by split."""


def render(domain: str, index: int, size: Size = SIZE, seed: int = 0) -> tuple[UInt8Array, UInt8Array]:
    """Image (H, W, 3) and label (H, W) of scene ``index`` of ``domain``; labels index ``CLASSES``."""
    if domain not in STYLES:
        raise DataError(f"no embedded domain '{domain}'", nearest(domain, STYLES) or f"use one of {DOMAINS}")
    return _render(STYLES[domain], generator("scenes", domain, seed, index), size)


def render_random(index: int, size: Size = SIZE, seed: int = 0) -> tuple[UInt8Array, UInt8Array]:
    """Image and label of a scene in a random style; the demo teacher is trained on these."""
    rng = generator("scenes", "random", seed, index)
    return _render(random_style(rng), rng, size)


def _render(style: Style, rng: np.random.Generator, size: Size) -> tuple[UInt8Array, UInt8Array]:
    scene = compose(style, rng, size)
    layers, lamps = paint(scene, rng)
    weather = draw_weather(style, scene.sun, rng)
    return photograph(layers, lamps, scene.camera, weather, rng), layers.label
