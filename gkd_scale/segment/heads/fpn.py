"""The feature pyramid head (semantic FPN: Kirillov et al., "Panoptic Feature Pyramid Networks", 2019).

Lateral 1x1 convolutions bring four maps to one width; each coarser map is added to the next finer
one; a 3x3 convolution, GroupNorm and ReLU refine every level; their sum at the finest level is
classified. GroupNorm works per image, so the head does not depend on micro batch or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from gkd_scale.segment.heads.base import SegHead, classifier, sum_at_finest, upsample
from gkd_scale.types import Size


class FpnHead(SegHead):
    """``width`` channels inside; ``dropout`` of whole channels before the classifier."""

    def __init__(
        self, channels: Sequence[int], classes: int, *, width: int = 96, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.normalise = nn.ModuleList(nn.GroupNorm(1, dim) for dim in channels)
        self.lateral = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in channels)
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.GroupNorm(math.gcd(width, 32), width),
                nn.ReLU(),
            )
            for _ in channels
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = classifier(width, classes)

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        layers = zip(self.lateral, self.normalise, features, strict=True)
        levels = [project(norm(feature)) for project, norm, feature in layers]
        for index in range(len(levels) - 2, -1, -1):
            finer = levels[index]
            levels[index] = finer + upsample(levels[index + 1], (finer.shape[-2], finer.shape[-1]))
        maps = [refine(level) for refine, level in zip(self.refine, levels, strict=True)]
        return upsample(self.classifier(self.dropout(sum_at_finest(maps))), size)
