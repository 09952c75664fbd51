"""The comparison of a student with one teacher: heads, and losses in the teacher's conditioned space.

A student of several teachers has one of these for each, and one pass for all.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.distill.config import LossConfig, QsdConfig
from gkd_scale.distill.losses import DISTANCES
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.models.students import Student
from gkd_scale.models.tokens import resample_tokens, to_tokens
from gkd_scale.types import Features, Grid

Loss = Callable[[Tensor, Tensor], Tensor]
"""(student, teacher), both (B, N, C), to a scalar in float32: the mean over tokens."""


class Output(NamedTuple):
    """A student's output for a micro batch, on its own grid of n tokens.

    ``plain``: features of whole images; ``levels``: maps (B, C_i, h_i, w_i) of earlier levels, none without a
    ladder. ``masked`` (R, n, Cs): patches of the second pass, of the images ``rows`` (R,); both None if the
    patches of all images are those of the first pass.
    """

    plain: Features
    levels: list[Tensor]
    rows: Tensor | None = None
    masked: Tensor | None = None


class TeacherHeads(nn.Module):
    """Three heads, a ladder of projectors and the conditioning of one teacher's tokens.

    The CLS head has one key, whose weight is 1 whatever φ is: with ``form="qsd"`` its φ gets zero gradient
    and moves by weight decay only, as in the reference. It stays: without it the ladder, which is drawn after
    it, and the files of earlier runs would differ.
    """

    def __init__(self, student: Student, space: TeacherSpace, weights: LossConfig, qsd: QsdConfig) -> None:
        super().__init__()
        self.student_grid: Grid = student.grid
        self.grid, self.name, self.weight = space.grid, space.name, space.weight
        self.weights = weights
        self.distance: Loss = pkgutil.resolve_name(DISTANCES[weights.distance])
        self.terms = terms(weights)
        self.conditioning = space.conditioning
        heads = [
            QsdHead(
                student.dim,
                space.dim,
                scaled=qsd.scale == "sqrt",
                zero_query=qsd.init == "zero-query",
                attend=qsd.form == "qsd",
            )
            for _ in range(3)
        ]
        self.head_feature, self.head_mask, self.head_cls = heads
        if not weights.mask_weight:  # no gradient would reach it
            self.head_mask.requires_grad_(False)
        widths = student.level_widths() if weights.ladder_weight else []
        self.ladder = nn.ModuleList(QsdHead(width, space.dim, attend=False) for width in widths)

    def forward(self, output: Output, teacher: Features, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of one micro batch, each the mean over all its elements; ``"loss"`` is their weighted sum.

        ``rows`` (K,): the images that count, one or more; None for all.
        """
        plain = self.on_grid(output.plain)
        masked = self._masked_tokens(output, plain.patches)
        levels = output.levels
        if rows is not None:
            plain, teacher = (Features(*(tensor[rows] for tensor in part)) for part in (plain, teacher))
            masked = None if masked is None else masked[rows]
            levels = [level[rows] for level in levels]
        teacher = self.conditioning(teacher)
        losses = self.losses(plain, masked, teacher)
        if levels:
            losses["loss_ladder"] = self._ladder_loss(levels, teacher)
            losses["loss"] = losses["loss"] + self.weights.ladder_weight * losses["loss_ladder"]
        return losses

    def on_grid(self, features: Features) -> Features:
        """A student's features with its patches on the teacher's grid."""
        return Features(features.cls, resample_tokens(features.patches, self.student_grid, self.grid))

    def _masked_tokens(self, output: Output, plain: Tensor) -> Tensor | None:
        """Patches (B, N, Cs) on the teacher's grid in which masked images have those of the second pass."""
        if not self.weights.mask_weight or output.rows is None or output.masked is None:
            return plain if self.weights.mask_weight else None
        return plain.index_copy(0, output.rows, resample_tokens(output.masked, self.student_grid, self.grid))

    def losses(self, plain: Features, masked: Tensor | None, teacher: Features) -> dict[str, Tensor]:
        """The losses of the student's features, its masked patches (B, N, Cs) or None, and the teacher's.

        As in the reference implementation, the CLS that enters L_feat is the output of the CLS head.
        """
        weights, distance = self.weights, self.distance
        target_cls = teacher.cls.unsqueeze(1)
        soft_cls = self.head_cls(plain.cls.unsqueeze(1), target_cls)
        soft = self.head_feature(plain.patches, teacher.patches)
        feature_loss = distance(torch.cat([soft_cls, soft], 1), torch.cat([target_cls, teacher.patches], 1))
        losses = {"loss_feature": feature_loss, "loss_cls": distance(soft_cls, target_cls)}
        total = weights.feature_weight * feature_loss + weights.cls_weight * losses["loss_cls"]
        if masked is not None:
            losses["loss_mask"] = distance(self.head_mask(masked, teacher.patches), teacher.patches)
            total = total + weights.mask_weight * losses["loss_mask"]
        for name, (weight, term, projected) in self.terms.items():
            losses[name] = term(soft if projected else plain.patches, teacher.patches)
            total = total + weight * losses[name]
        return {"loss": total, **losses}

    def _ladder_loss(self, levels: list[Tensor], teacher: Features) -> Tensor:
        """The mean distance of the student's projected earlier levels, pooled to the teacher's grid."""
        maps = (to_tokens(F.adaptive_avg_pool2d(level, self.grid)) for level in levels)
        distances = [
            self.distance(head(tokens, teacher.patches), teacher.patches)
            for head, tokens in zip(self.ladder, maps, strict=True)
        ]
        return torch.stack(distances).mean()


def terms(weights: LossConfig) -> dict[str, tuple[float, Loss, bool]]:
    """The terms that have a weight: their weight, function, and whether it takes projected tokens."""
    active = {}
    for field in fields(weights):
        weight = getattr(weights, field.name)
        if "term" in field.metadata and weight:
            term = pkgutil.resolve_name(field.metadata["term"])
            active[f"loss_{field.name.removesuffix('_weight')}"] = (weight, term, field.metadata["projected"])
    return active
