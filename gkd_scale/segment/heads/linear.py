"""The linear head: BatchNorm and a 1x1 convolution on four feature maps.

A 1x1 convolution of concatenated maps is the sum of 1x1 convolutions of each, and it commutes with
bilinear resampling; so each map is classified at its own resolution and K channels are resampled
instead of C. As the head cannot learn much, it measures how good the features are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gkd_scale.segment.heads.base import SegHead, classifier, sum_at_finest, upsample
from gkd_scale.segment.heads.norm import BatchNorm
from gkd_scale.types import Size


class LinearHead(SegHead):
    """No arguments. Parameters: 2 C_i + K C_i a map, and K biases."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(BatchNorm(width) for width in channels)
        self.classifiers = nn.ModuleList(
            classifier(width, classes, bias=index == 0) for index, width in enumerate(channels)
        )

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        layers = zip(self.classifiers, self.norms, features, strict=True)
        return upsample(sum_at_finest([project(norm(feature)) for project, norm, feature in layers]), size)
