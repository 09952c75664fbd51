"""Af-DCD: augmentation-free dense contrastive distillation (Fan et al., "Augmentation-free Dense Contrastive
Knowledge Distillation for Efficient Semantic Segmentation", NeurIPS 2023). With F = align(f_s), 1x1:

    L = λ_r · Σ (G(m ⊙ F) - t)² / B  +  λ_c · L_con  +  λ_l · KL(softmax y_t ‖ softmax y_s)

G: conv3-ReLU-conv3; m masks 75 % of the places. L_con works inside patches of 4x4 places and 16 groups of
channels: a group at a place, s_i, should be nearer to its own t_i than to the other 255 of the patch,

    L_con = mean_i -log( exp(-|s_i - t_i|/τ) / Σ_j exp(-|s_i - t_j|/τ) ), τ = 0.07,

|·| the mean absolute difference over the group's channels [inferred: mean rather than sum]. The third term
is used only if the teacher has a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.models.backbone import Backbone
from gkd_scale.segment.methods.base import (
    FeatureMethod,
    MethodInputs,
    MethodTeacher,
    generation,
    random_masks,
    sum_mse,
)

TEMPERATURE = 0.07
PATCH = 4


class AfDcd(FeatureMethod):
    """``rebuild`` λ_r, ``contrast`` λ_c, ``logits`` λ_l; ``ratio`` of masked places; channel ``groups``."""

    def __init__(
        self,
        backbone: Backbone,
        teacher: MethodTeacher,
        *,
        rebuild: float = 2e-6,
        contrast: float = 5e-3,
        logits: float = 1.0,
        ratio: float = 0.75,
        groups: int = 16,
    ) -> None:
        super().__init__(backbone, teacher)
        self.rebuild, self.contrast, self.ratio = rebuild, contrast, ratio
        self.logits = logits if teacher.has_head else 0.0
        self.groups = math.gcd(groups, self.teacher_dim)
        self.align = nn.Conv2d(self.student_dim, self.teacher_dim, 1)
        self.generate = generation(self.teacher_dim)

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        student, teacher = self.align(self.student_map(inputs.student)), self.teacher_map(inputs)
        rows, columns = self.teacher_grid
        masked = random_masks(len(student), rows * columns, self.ratio, student.device)
        visible = (~masked).view(-1, 1, rows, columns).to(student.dtype)
        terms = {
            "loss_rebuild": self.rebuild * sum_mse(self.generate(student * visible), teacher),
            "loss_contrast": self.contrast * contrast(student, teacher, self.groups),
        }
        if self.logits:
            terms["loss_logits"] = self.logits * pixel_divergence(*inputs.logits)
        return terms


def contrast(student: Tensor, teacher: Tensor, groups: int) -> Tensor:
    """L_con of maps (B, C, h, w), in float32; places beyond the last whole patch are left out."""
    s, t = (_patches(maps.float(), groups) for maps in (student, teacher))
    similarity = -torch.cdist(s, t, p=1) / (s.shape[2] * TEMPERATURE)
    targets = torch.arange(s.shape[1], device=s.device).repeat(len(s))
    return F.cross_entropy(similarity.flatten(0, 1), targets)


def pixel_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of class distributions, logits (B, K, h, w); the mean over pixels."""
    log_s, log_t = (y.float().log_softmax(1).transpose(0, 1).flatten(1).T for y in (student, teacher))
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def _patches(maps: Tensor, groups: int) -> Tensor:
    """(B, C, h, w) to (B·patches, places·groups, C/groups)."""
    height, width = (min(PATCH, side) for side in maps.shape[-2:])
    maps = maps[..., : maps.shape[2] // height * height, : maps.shape[3] // width * width]
    parts = maps.unflatten(3, (-1, width)).unflatten(2, (-1, height)).unflatten(1, (groups, -1))
    return parts.permute(0, 3, 5, 4, 6, 1, 2).reshape(-1, height * width * groups, parts.shape[2])
