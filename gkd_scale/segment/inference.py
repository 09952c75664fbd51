"""A model and a dataset to a confusion matrix.

An image of any size is scaled until it just covers the size that the model was trained at (its
aspect is kept) and classified, whole or by windows; the logits go, bilinearly, to the size of the ground
truth, where the class is chosen and counted.

Windows have one size, follow each other by one stride, and the last of a row or column ends at the border,
so that every pixel is seen; logits of overlapping windows are averaged with equal weight, as the
reference does. The whole image is the case of one window. Windows that reach beyond a small image are
cut to it, and the model's input is padded at the right and at the bottom to the backbone's stride;
logits of the padding are cut off. An image so long that it would have many times the pixels of the training
size (:data:`MOST_TIMES`) is refused as a whole image, since attention over it would hardly end.

Test-time augmentation averages logits over sizes of the image and its mirror image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from gkd_scale.errors import DataError
from gkd_scale.prefetch import prefetch
from gkd_scale.segment.augment import cover_scale
from gkd_scale.segment.config import Windows as Windows
from gkd_scale.segment.heads.base import upsample
from gkd_scale.segment.metrics import Confusion
from gkd_scale.types import SegDataset, SegSample, Size, UInt8Array

T = TypeVar("T")

MOST_TIMES, MOST_WHOLE = 16, 1 << 20
"""A whole image may have this multiple of the training size's pixels, or this number; the larger counts."""
MOST_PIXELS = 1 << 25
"""The most pixels of a longer image that windows may see: 2.5 GB of logits for 19 classes."""
_MOST_LOGITS = 1 << 28
"""Above this, logits are brought to the size of the ground truth one class at a time."""


class Model(Protocol):
    """The part of a segmenter that inference uses."""

    @property
    def stride(self) -> int: ...

    @property
    def fill(self) -> tuple[int, int, int]: ...

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, K, H, W)."""
        ...


@dataclass(frozen=True)
class Inference:
    """Settings: ``windows``, or None for whole images; ``scales``; ``flip``, to use mirror images too.

    A scale of 1 is the least size of the image that covers the training size.
    """

    windows: Windows | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def facts(self) -> dict[str, Any]:
        """The settings as a result file holds them; JSON types."""
        facts: dict[str, Any] = {"mode": "whole" if self.windows is None else "slide"}
        if self.windows is not None:
            facts |= {"window": list(self.windows.size), "stride": list(self.windows.stride)}
        return {**facts, "scales": list(self.scales), "flip": self.flip}


WHOLE = Inference()


def prepare(image: UInt8Array, size: Size, scale: float = 1.0) -> Tensor:
    """(H, W, 3) uint8 to (3, h, w) uint8: ``scale`` times the least size that covers ``size``."""
    source = (image.shape[0], image.shape[1])
    factor = scale * cover_scale(source, size)
    target = [max(1, round(side * factor)) for side in source]
    return tv.resize(torch.from_numpy(np.array(image)).permute(2, 0, 1), target, antialias=True)


def require_bounded_sample(sample: SegSample, dataset: str, size: Size, how: Inference) -> None:
    """:func:`require_bounded` of a sample of a dataset."""
    require_bounded(f"the image {sample.name} of {dataset}", sample.image, size, how)


def require_bounded(
    what: str, image: UInt8Array, size: Size, how: Inference, slide: str = ", or add --inference slide"
) -> None:
    """DataError for an image (H, W, 3) whose shape would make inference at training size ``size`` endless.

    ``what`` names the image; ``slide`` ends the hint with the option for windows.
    """
    height, width = image.shape[:2]
    factor = cover_scale((height, width), size)
    pixels = height * width * factor**2
    if pixels <= max(MOST_TIMES * size[0] * size[1], MOST_WHOLE):
        return
    if how.windows is None or pixels * max(how.scales) ** 2 > MOST_PIXELS:
        least = "x".join(str(max(1, round(side * factor))) for side in (height, width))
        raise DataError(
            f"{what} is {height}x{width} (HxW): to cover the training size of "
            f"{size[0]}x{size[1]} it would become {least}",
            "cut it into shorter images, or leave it out"
            + (slide if pixels * max(how.scales) ** 2 <= MOST_PIXELS else ""),
        )


def pad_to_stride(pixels: Tensor, stride: int, fill: tuple[int, int, int]) -> Tensor:
    """(B, 3, H, W) padded at the right and the bottom with ``fill`` to multiples of ``stride``."""
    batch, _, height, width = pixels.shape
    full = (-(-height // stride) * stride, -(-width // stride) * stride)
    if full == (height, width):
        return pixels
    canvas = torch.tensor(fill, dtype=pixels.dtype, device=pixels.device)[None, :, None, None]
    canvas = canvas.repeat(batch, 1, *full)
    canvas[..., :height, :width] = pixels
    return canvas


def starts(length: int, window: int, stride: int) -> list[int]:
    """The starts of windows that cover ``length`` pixels; the last window ends at the border."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def _corners(windows: Windows, image: Size) -> list[tuple[int, int]]:
    """Top and left of the windows that cover an image, row by row."""
    rows, columns = (starts(*axis) for axis in zip(image, windows.size, windows.stride, strict=True))
    return [(top, left) for top in rows for left in columns]


def logits(model: Model, pixels: Tensor, windows: Windows | None = None, batch_size: int = 8) -> Tensor:
    """(B, 3, H, W) uint8 to (B, K, H, W) float32, the mean over the windows that see a pixel.

    ``batch_size`` windows (at least one of each image) go through the model together.
    """
    batch, _, height, width = pixels.shape
    if windows is None:
        return _padded_logits(model, pixels)
    size = (min(height, windows.size[0]), min(width, windows.size[1]))
    corners = _corners(windows, (height, width))
    if len(corners) == 1:
        return _padded_logits(model, pixels)
    places = [(..., slice(top, top + size[0]), slice(left, left + size[1])) for top, left in corners]
    total: Tensor | None = None
    counts = pixels.new_zeros((height, width), dtype=torch.float32)
    step = max(1, batch_size // batch)
    for first in range(0, len(places), step):
        chunk = places[first : first + step]
        window_logits = _padded_logits(model, torch.cat([pixels[place] for place in chunk]))
        if total is None:
            total = window_logits.new_zeros((batch, window_logits.shape[1], height, width))
        for place, part in zip(chunk, window_logits.split(batch), strict=True):
            total[place] += part
            counts[place] += 1
    assert total is not None
    return total.div_(counts)


def _padded_logits(model: Model, pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    return model.logits(pad_to_stride(pixels, model.stride, model.fill))[..., :height, :width].float()


@torch.no_grad()
def predict(
    model: Model,
    views: Sequence[Tensor],
    sizes: Sequence[Size],
    how: Inference = WHOLE,
    batch_size: int = 8,
) -> list[Tensor]:
    """Class maps (H_i, W_i) int64 at ``sizes``, of images (B, 3, h, w) at each of ``how.scales``."""
    maps = _view_logits(model, views, how, batch_size)
    return [_choose([part[index : index + 1] for part in maps], size) for index, size in enumerate(sizes)]


@torch.no_grad()
def scores(
    model: Model,
    views: Sequence[Tensor],
    sizes: Sequence[Size],
    how: Inference = WHOLE,
    batch_size: int = 8,
) -> Iterator[Tensor]:
    """As :func:`predict`, but logits (K, H_i, W_i) float32, summed over scales and mirror images."""
    maps = _view_logits(model, views, how, batch_size)
    for index, size in enumerate(sizes):
        yield _sum_at([part[index : index + 1] for part in maps], size)[0]


def _view_logits(model: Model, views: Sequence[Tensor], how: Inference, batch_size: int) -> list[Tensor]:
    """Logits (B, K, h, w) at each of ``how.scales``, and of the mirror images if ``how.flip``."""
    maps = []
    for pixels in views:
        maps.append(logits(model, pixels, how.windows, batch_size))
        if how.flip:
            maps.append(logits(model, pixels.flip(-1), how.windows, batch_size).flip(-1))
    return maps


def _choose(maps: Sequence[Tensor], size: Size) -> Tensor:
    """The class (H, W) with the greatest sum of logits over ``maps`` (1, K, h_i, w_i)."""
    if maps[0].shape[1] * size[0] * size[1] > _MOST_LOGITS:
        return _choose_by_class(maps, size)
    # max as argmax, which takes 2.6 times as long over channels on a CPU
    return _sum_at(maps, size).max(1).indices[0]


def _choose_by_class(maps: Sequence[Tensor], size: Size) -> Tensor:
    """The same in the memory of three classes: for images of very many pixels."""
    best = _sum_at([part[:, :1] for part in maps], size)
    best_class = torch.zeros(size, dtype=torch.int64, device=best.device)
    for index in range(1, maps[0].shape[1]):
        score = _sum_at([part[:, index : index + 1] for part in maps], size)
        best_class[(score > best)[0, 0]] = index
        best = torch.maximum(best, score)
    return best_class


def _sum_at(maps: Sequence[Tensor], size: Size) -> Tensor:
    total = upsample(maps[0], size)
    for part in maps[1:]:
        total = total + upsample(part, size)
    return total


def confusion(
    model: Model,
    dataset: SegDataset,
    size: Size,
    *,
    how: Inference = WHOLE,
    indices: Iterable[int] | None = None,
    batch_size: int = 8,
    workers: int = 2,
    device: torch.device | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Confusion:
    """The confusion of ``model`` over ``indices`` of ``dataset`` (all), each counted once.

    ``size`` is the training size. Ranks share a dataset by disjoint ``indices`` and add their
    results. At most ``batch_size`` images or windows go through the model together, but at least one of
    each image. ``advance(n)`` is called after every ``n`` images.
    """
    device = device or torch.device("cpu")

    def load(index: int) -> tuple[list[Tensor], Tensor]:
        sample = dataset[index]
        require_bounded_sample(sample, dataset.name, size, how)
        views = [prepare(sample.image, size, scale) for scale in how.scales]
        return views, torch.from_numpy(np.array(sample.label))

    total = Confusion(len(dataset.classes))
    sample_indices = range(len(dataset)) if indices is None else indices
    items = prefetch(load, sample_indices, workers, depth=2 * batch_size)
    for views, labels in by_size(items, how, batch_size, device):
        sizes = [(label.shape[0], label.shape[1]) for label in labels]
        for prediction, label in zip(predict(model, views, sizes, how, batch_size), labels, strict=True):
            total.update(prediction, label.to(prediction.device, non_blocking=True))
        advance(len(labels))
    return total


def by_size(
    items: Iterable[tuple[list[Tensor], T]], how: Inference, batch_size: int, device: torch.device
) -> Iterator[tuple[list[Tensor], list[T]]]:
    """Consecutive images with equal sizes together, at most ``batch_size`` images or windows.

    ``items`` are an image (3, H, W) uint8 at each scale, and what goes with it. Yields images (B, 3, H, W) at
    each scale, on ``device``, and what goes with them.
    """
    for shapes, alike in groupby(items, lambda item: [view.shape for view in item[0]]):
        windows = how.windows
        most = max(len(_corners(windows, (shape[-2], shape[-1]))) for shape in shapes) if windows else 1
        while group := list(islice(alike, max(1, batch_size // most))):
            views, others = zip(*group, strict=True)
            yield [torch.stack(images).to(device) for images in zip(*views, strict=True)], list(others)
