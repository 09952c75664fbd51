"""Training images: their order and their augmentation.

Everything is a pure function of the seed and of the position in an endless stream
(:mod:`gkd_scale.order`). An order says which image a position takes (:mod:`gkd_scale.segment.sampling`).
Each image is augmented by numbers from a generator of its own name, so the images depend neither on threads
nor on a resume.

The geometry is one draw: a box in the *source* image; only its pixels are resized. At scale 1 the image
just covers the training size, as in inference. Above 1 the box shows a part of the image; below 1 it
reaches beyond the image, and the rest is padded (label: ignored).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from gkd_scale.order import positions
from gkd_scale.prefetch import prefetch
from gkd_scale.randomness import generator
from gkd_scale.segment.config import AugmentConfig
from gkd_scale.segment.sampling import Order, Uniform
from gkd_scale.types import IGNORE, SegDataset, SegSample, Size, UInt8Array

Colour = tuple[int, int, int]

_CROP_TRIES = 10


class SegBatch(NamedTuple):
    """``pixels`` (B, 3, H, W) uint8 and ``labels`` (B, H, W) uint8."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Box:
    """A crop: rows [top, top+height) and columns [left, left+width) of the source; may reach beyond it."""

    top: int
    left: int
    height: int
    width: int


# --------------------------------------------------------------------------------------- one image


def cover_scale(source: Size, target: Size) -> float:
    """The least scale at which an image of size ``source`` covers ``target``."""
    return max(target[0] / source[0], target[1] / source[1])


def draw_box(source: Size, target: Size, scale: float, rng: np.random.Generator) -> Box:
    """A random box of the source that becomes ``target`` at ``scale`` times the covering scale.

    It lies inside the image if it fits; if it is larger, the image lies inside the box.
    """
    factor = scale * cover_scale(source, target)
    height, width = (max(1, round(side / factor)) for side in target)
    top, left = (
        int(rng.integers(min(0, room), max(0, room) + 1)) for room in (source[0] - height, source[1] - width)
    )
    return Box(top, left, height, width)


def crop_pixels(image: UInt8Array, box: Box, target: Size, fill: Colour) -> Tensor:
    """The box of an image (H, W, 3) as (3, *target) uint8, antialiased; ``fill`` beyond the image."""
    source, place = _placement(box, (image.shape[0], image.shape[1]), target)
    pixels = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, *target)
    part = torch.from_numpy(np.array(image[source])).permute(2, 0, 1)
    pixels[:, place[0], place[1]] = F.resize(part, _lengths(place), antialias=True)
    return pixels


def crop_label(label: UInt8Array, box: Box, target: Size) -> Tensor:
    """The box of a label (H, W) as ``target`` uint8, nearest neighbour; ignored beyond the label."""
    source, place = _placement(box, (label.shape[0], label.shape[1]), target)
    ids = torch.full(target, IGNORE, dtype=torch.uint8)
    part = torch.from_numpy(np.array(label[source]))[None]
    ids[place] = F.resize(part, _lengths(place), interpolation=InterpolationMode.NEAREST_EXACT)[0]
    return ids


Slices = tuple[slice, slice]


def _placement(box: Box, available: Size, target: Size) -> tuple[Slices, Slices]:
    """Rows and columns of the source that the box shows, and their place in the target."""
    rows = _overlap(box.top, box.height, available[0], target[0])
    columns = _overlap(box.left, box.width, available[1], target[1])
    return (rows[0], columns[0]), (rows[1], columns[1])


def _overlap(start: int, length: int, available: int, target: int) -> Slices:
    """The part of [start, start+length) that exists, and its place in ``target`` pixels."""
    low, high = max(start, 0), min(start + length, available)
    first = min(round((low - start) * target / length), target - 1)
    last = max(round((high - start) * target / length), first + 1)
    return slice(low, high), slice(first, last)


def _lengths(place: Slices) -> list[int]:
    return [span.stop - span.start for span in place]


def one_class_share(label: Tensor) -> float:
    """The share of the most frequent class in the valid pixels; 1 if no pixel is valid."""
    counts = torch.bincount(label[label != IGNORE].long().flatten())
    return float(counts.max() / counts.sum()) if counts.numel() else 1.0


def photometric(pixels: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation (up to 1/8, 1/2, 1/2) and hue (1/20 turn), each with probability 1/2.

    ``strength`` scales the ranges. At 1, contrast and saturation have those of the usual photometric
    distortion of segmentation, hue half of it, and brightness is a factor; usually it is added (up to
    32 of 255). All eight numbers are always drawn.
    """
    use = rng.random(4) < 0.5
    amount = rng.uniform(-1, 1, 4) * strength
    if use[0]:
        pixels = F.adjust_brightness(pixels, max(0.0, 1 + float(amount[0]) / 8))
    if use[1]:
        pixels = F.adjust_contrast(pixels, max(0.0, 1 + float(amount[1]) / 2))
    if use[2]:
        pixels = F.adjust_saturation(pixels, max(0.0, 1 + float(amount[2]) / 2))
    if use[3]:
        pixels = F.adjust_hue(pixels, float(np.clip(amount[3] / 20, -0.5, 0.5)))
    return pixels


def augment(
    sample: SegSample,
    target: Size,
    config: AugmentConfig,
    rng: np.random.Generator,
    fill: Colour = (0, 0, 0),
    focus: tuple[int, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Pixels (3, H, W) uint8 and label (H, W) uint8 of size ``target``; ``fill`` is the padding's RGB.

    Crops are drawn, at most ten, until none of the classes fills too much of it and it shows ``focus``: a
    class and its least share of the pixels.
    """
    source = (sample.label.shape[0], sample.label.shape[1])
    scale = float(rng.uniform(*config.scale))
    for _ in range(_CROP_TRIES):
        box = draw_box(source, target, scale, rng)
        label = crop_label(sample.label, box, target)
        mixed = config.cat_max_ratio >= 1 or one_class_share(label) < config.cat_max_ratio
        if mixed and (focus is None or float((label == focus[0]).float().mean()) >= focus[1]):
            break
    pixels = crop_pixels(sample.image, box, target, fill)
    if rng.random() < config.flip:
        pixels, label = F.horizontal_flip(pixels), F.horizontal_flip(label)
    if config.photometric > 0:
        pixels = photometric(pixels, config.photometric, rng)
    return pixels, label


# -------------------------------------------------------------------------------------- the stream


@dataclass(frozen=True)
class TrainStream:
    """A dataset as an endless, resumable stream of augmented micro batches.

    Without an ``order`` every image comes once an epoch.
    """

    dataset: SegDataset
    size: Size
    config: AugmentConfig
    seed: int
    fill: Colour
    workers: int
    order: Order | None = None

    @cached_property
    def _order(self) -> Order:
        return self.order or Uniform(self.seed, len(self.dataset))

    def sample(self, position: int) -> tuple[Tensor, Tensor]:
        """Image ``position`` of the stream, augmented."""
        epoch, image, focus = self._order(position)
        rng = generator("stage2", "augment", self.seed, epoch, image)
        return augment(self.dataset[image], self.size, self.config, rng, self.fill, focus)

    def batches(
        self, *, micro: int, accumulation: int, rank: int, world: int
    ) -> Callable[[int, int], Iterator[SegBatch]]:
        """``(start, stop)`` to this rank's micro batches of those steps, read ahead by threads."""

        def between(start: int, stop: int) -> Iterator[SegBatch]:
            parts = positions(start, stop, micro=micro, accumulation=accumulation, rank=rank, world=world)
            samples = prefetch(
                self.sample, chain.from_iterable(parts), self.workers, depth=max(2 * micro, 2 * self.workers)
            )
            while chunk := list(islice(samples, micro)):
                pixels, labels = zip(*chunk, strict=True)
                yield SegBatch(torch.stack(pixels), torch.stack(labels))

        return between
