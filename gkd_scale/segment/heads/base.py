"""The interface of heads: feature maps in, logits at any size out, and losses that the head defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.types import IGNORE, Size


class SegHead(nn.Module, ABC):
    """A head is built with ``channels`` of the four feature maps, ``classes`` K, and its own arguments."""

    @abstractmethod
    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """Maps (B, C_i, h_i, w_i), finest first, to logits (B, K, *size)."""

    def class_logits(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(B, K, *size) whose softmax over K is the class distribution, for methods that compare those."""
        logits: Tensor = self(features, size)
        return logits

    def losses(self, features: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Named scalars for ``labels`` (B, H, W); ``loss`` is minimised."""
        size = (labels.shape[1], labels.shape[2])
        return {"loss": cross_entropy(self(features, size), labels)}


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in float32, summed over valid pixels, divided by ALL pixels of the batch.

    Every valid pixel weighs the same, so that the mean over ranks and micro batches equals the loss
    of the whole batch, however the ignored pixels (255) are spread; a batch without a valid pixel
    gives 0 with a zero gradient. Shapes (B, K, H, W) and (B, H, W).
    """
    total = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE, reduction="sum")
    return total / max(labels.numel(), 1)


def classifier(width: int, classes: int, *, bias: bool = True) -> nn.Conv2d:
    """A 1x1 convolution to K classes whose first predictions are close to uniform."""
    convolution = nn.Conv2d(width, classes, 1, bias=bias)
    nn.init.normal_(convolution.weight, std=0.01)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


def upsample(maps: Tensor, size: Size) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinear on pixel centres; ``maps`` itself if it has that size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def sum_at_finest(maps: Sequence[Tensor]) -> Tensor:
    """The sum of maps (B, C, h_i, w_i), resampled to the size of the first."""
    size = (maps[0].shape[-2], maps[0].shape[-1])
    return torch.stack([upsample(feature, size) for feature in maps]).sum(0)
