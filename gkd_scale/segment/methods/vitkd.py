"""ViTKD: which layers of a vision transformer teach (Yang et al., "ViTKD: Practical Guidelines for ViT
Feature Knowledge Distillation", 2022, arXiv 2209.02432).

Shallow blocks are mimicked, the last one is rebuilt from half of its tokens:

    L = α · Σ_{i=0,1} Σ (W_i s_i - t_i)² / B  +  (β / r) · Σ_masked (G(mask(W s)) - t)² / B

with α = 3e-5, β = 3e-6, r = 0.5 the share of tokens that a learned token replaces, G conv3-ReLU-conv3.
Networks that are no plain transformers use their first two stages. Maps are compared on the coarser of the
two grids: the finer map is averaged to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.models.backbone import Backbone
from gkd_scale.models.families import widths
from gkd_scale.models.tokens import to_map, to_tokens
from gkd_scale.segment.methods.base import (
    FeatureMethod,
    MethodInputs,
    MethodTeacher,
    generation,
    random_masks,
    sum_mse,
)


class VitKd(FeatureMethod):
    """``shallow`` α, ``deep`` β and ``ratio`` r."""

    levels = (0, 1)

    def __init__(
        self,
        backbone: Backbone,
        teacher: MethodTeacher,
        *,
        shallow: float = 3e-5,
        deep: float = 3e-6,
        ratio: float = 0.5,
    ) -> None:
        super().__init__(backbone, teacher)
        self.shallow, self.deep, self.ratio = shallow, deep, ratio
        pairs = zip(widths(backbone.net, self.levels), teacher.level_widths(self.levels), strict=True)
        self.mimic = nn.ModuleList(nn.Conv2d(mine, theirs, 1) for mine, theirs in pairs)
        self.align = nn.Linear(self.student_dim, self.teacher_dim)
        self.mask_token = nn.Parameter(torch.zeros(self.teacher_dim))
        self.generate = generation(self.teacher_dim)

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        return {
            "loss_shallow": self.shallow * self._mimic_loss(inputs),
            "loss_deep": self.deep / self.ratio * self._rebuild_loss(inputs),
        }

    def _mimic_loss(self, inputs: MethodInputs) -> Tensor:
        targets = inputs.teacher.levels(inputs.pixels, self.levels)
        layers = zip(self.mimic, inputs.student.levels, targets, strict=True)
        return torch.stack([_mimic(align, mine, theirs) for align, mine, theirs in layers]).sum()

    def _rebuild_loss(self, inputs: MethodInputs) -> Tensor:
        tokens = self.align(self.student_tokens(inputs.student))
        masked = random_masks(len(tokens), tokens.shape[1], self.ratio, tokens.device)[..., None]
        visible = torch.where(masked, self.mask_token.to(tokens.dtype), tokens)
        rebuilt = to_tokens(self.generate(to_map(visible, self.teacher_grid)))
        return sum_mse(rebuilt * masked, inputs.teacher_features.patches * masked)


def _mimic(align: nn.Module, mine: Tensor, theirs: Tensor) -> Tensor:
    """The student's aligned map (B, Cs, h, w) against the teacher's (B, Ct, h', w'), on the coarser grid."""
    height, width = (min(sides) for sides in zip(mine.shape[-2:], theirs.shape[-2:], strict=True))
    mine, theirs = (average_to(maps, (height, width)) for maps in (mine, theirs))
    return sum_mse(align(mine), theirs)


def average_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) averaged to ``size``; the same tensor if that is its size."""
    return maps if maps.shape[-2:] == size else F.adaptive_avg_pool2d(maps, size)
