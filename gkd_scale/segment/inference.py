"""A model and a dataset to a confusion matrix.

An image of any size is scaled until it just covers the size that the model was trained at (its
aspect is kept), padded at the right and at the bottom to the backbone's stride, and classified; the
logits of the padding are cut off and the rest goes, bilinearly, to the size of the ground truth,
where the class is chosen and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from gkd_scale.prefetch import prefetch
from gkd_scale.segment.augment import cover_scale
from gkd_scale.segment.heads.base import upsample
from gkd_scale.segment.metrics import Confusion
from gkd_scale.types import SegDataset, Size, UInt8Array


class Model(Protocol):
    """What inference needs of a segmenter."""

    @property
    def stride(self) -> int: ...

    @property
    def fill(self) -> tuple[int, int, int]: ...

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, K, H, W)."""
        ...


class Prepared(NamedTuple):
    """``pixels`` (3, H, W) uint8 at working size; ``label`` (H', W') uint8 at its own."""

    pixels: Tensor
    label: Tensor


def prepare(image: UInt8Array, size: Size) -> Tensor:
    """(H, W, 3) uint8 to (3, h, w) uint8, the least size of the same aspect that covers ``size``."""
    source = (image.shape[0], image.shape[1])
    scale = cover_scale(source, size)
    working = [max(1, round(side * scale)) for side in source]
    return T.resize(torch.from_numpy(np.array(image)).permute(2, 0, 1), working, antialias=True)


def pad_to_stride(pixels: Tensor, stride: int, fill: tuple[int, int, int]) -> Tensor:
    """(B, 3, H, W) padded at the right and the bottom with ``fill`` to multiples of ``stride``."""
    batch, _, height, width = pixels.shape
    padded = (-(-height // stride) * stride, -(-width // stride) * stride)
    if padded == (height, width):
        return pixels
    canvas = torch.tensor(fill, dtype=pixels.dtype, device=pixels.device)[None, :, None, None]
    canvas = canvas.repeat(batch, 1, *padded)
    canvas[..., :height, :width] = pixels
    return canvas


@torch.no_grad()
def predict(model: Model, pixels: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Class maps (H_i, W_i) int64 at ``sizes`` of images (B, 3, h, w) at working size."""
    height, width = pixels.shape[-2:]
    logits = model.logits(pad_to_stride(pixels, model.stride, model.fill))[..., :height, :width].float()
    if len(set(sizes)) == 1:
        return list(upsample(logits, sizes[0]).argmax(1))
    return [upsample(each[None], size).argmax(1)[0] for each, size in zip(logits, sizes, strict=True)]


def confusion(
    model: Model,
    dataset: SegDataset,
    size: Size,
    *,
    indices: Iterable[int] | None = None,
    batch_size: int = 8,
    workers: int = 2,
    device: torch.device | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Confusion:
    """The confusion of ``model`` over ``indices`` of ``dataset`` (all), each counted once.

    ``size`` is the training size. Ranks share a dataset by disjoint ``indices`` and add their
    results. ``advance(n)`` is called after every ``n`` images.
    """
    device = device or torch.device("cpu")

    def load(index: int) -> Prepared:
        sample = dataset[index]
        return Prepared(prepare(sample.image, size), torch.from_numpy(np.array(sample.label)))

    total = Confusion(len(dataset.classes))
    wanted = range(len(dataset)) if indices is None else indices
    loaded = prefetch(load, wanted, workers, depth=2 * batch_size)
    for group in _same_size(loaded, batch_size):
        pixels = torch.stack([item.pixels for item in group]).to(device)
        sizes = [(item.label.shape[0], item.label.shape[1]) for item in group]
        for found, item in zip(predict(model, pixels, sizes), group, strict=True):
            total.update(found.cpu(), item.label)
        advance(len(group))
    return total


def _same_size(items: Iterable[Prepared], most: int) -> Iterator[list[Prepared]]:
    """Neighbours whose pixels have one size, at most ``most`` together."""
    group: list[Prepared] = []
    for item in items:
        if group and (len(group) == most or item.pixels.shape != group[0].pixels.shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
