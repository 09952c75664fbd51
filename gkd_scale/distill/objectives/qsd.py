"""Query-based soft distillation (arXiv 2603.02554) and the losses around it: three heads beside the student.

L_QSD = a·L_feat + b·L_mask + c·L_cls, and with a weight r·L_relation + n·L_contrast on the patches
(:mod:`gkd_scale.distill.losses`) and l·L_ladder on the student's earlier levels, those that stage 2's head
reads: a projector each, the same distance and target (the ladder of projectors of UNIC, Sariyildiz et al.,
ECCV 2024, arXiv 2408.05088). Keys and targets are the teacher's conditioned tokens, in float32
(:mod:`gkd_scale.models.conditioning`).

The masked pass runs on the masked images only: the tokens of the others are those of the first pass. Loss
and gradients are those of two full passes if an image's features depend on that image alone. With drop-path
the shared half sees one draw instead of two. With BatchNorm (ResNet, MobileNet, EfficientViT) the second
pass has the statistics of the masked images instead of those of masked and unmasked ones together. It leaves
the running statistics, which the exported student applies to whole images, to the first pass. If there are
other ranks, a micro batch without a masked image runs the pass on its first one and leaves the result out:
losses and gradients are those of no second pass, and every rank does the same collectives.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.distill.config import LossConfig, MaskConfig, QsdConfig
from gkd_scale.distill.draws import Draws
from gkd_scale.distill.jitter import jitter
from gkd_scale.distill.losses import DISTANCES
from gkd_scale.distill.objectives.base import Objective, drawn
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.engine.batch_norm import batch_norms, kept_statistics
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.students import Student
from gkd_scale.models.tokens import resample_tokens, to_tokens
from gkd_scale.types import Batch, Features, Grid

Loss = Callable[[Tensor, Tensor], Tensor]
"""(student, teacher), both (B, N, C), to a scalar in float32: the mean over tokens."""


class Distiller(Objective):
    """A student, its QSD heads and its ladder; ``"loss"`` is the weighted sum of the named losses.

    The CLS head has one key, whose weight is 1 whatever φ is: with ``form="qsd"`` its φ gets zero gradient
    and moves by weight decay only, as in the reference. It stays: without it the ladder, which is drawn after
    it, and the files of earlier runs would differ.
    """

    def __init__(
        self,
        student: Student,
        teacher_dim: int,
        teacher_grid: Grid,
        *,
        loss: LossConfig | None = None,
        qsd: QsdConfig | None = None,
        mask: MaskConfig | None = None,
        jitter: float = 0.0,
        conditioning: Conditioning | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(student)
        self.teacher_grid = teacher_grid
        self.weights = loss or LossConfig()
        self.conditioning = conditioning or Conditioning()
        self.distance: Loss = pkgutil.resolve_name(DISTANCES[self.weights.distance])
        self.terms = terms(self.weights)
        masking = mask or MaskConfig()
        sizes = frozenset([student.mask_tokens] if self.weights.mask_weight else ())
        self.draws = Draws(seed, sizes, masking.ratio, masking.probability, jitter)
        form = qsd or QsdConfig()
        heads = [
            QsdHead(
                student.dim,
                teacher_dim,
                scaled=form.scale == "sqrt",
                zero_query=form.init == "zero-query",
                attend=form.form == "qsd",
            )
            for _ in range(3)
        ]
        self.head_feature, self.head_mask, self.head_cls = heads
        if not self.weights.mask_weight:  # no gradient would reach them
            for part in (self.head_mask, student.mask):
                part.requires_grad_(False)
        widths = student.level_widths() if self.weights.ladder_weight else []
        self.ladder = nn.ModuleList(QsdHead(width, teacher_dim, attend=False) for width in widths)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of one micro batch, each the mean over all its elements, and ``token_variance``."""
        device = next(self.head_feature.parameters()).device
        pixels = batch.pixels.to(device, non_blocking=True)
        if self.draws.jitter:
            pixels = jitter(pixels, drawn(batch).jitter.to(device, non_blocking=True))
        teacher = self.conditioning(Features(*(t.to(device, non_blocking=True) for t in batch.teacher)))
        if self.ladder:
            found, levels = self.student.with_levels(pixels)
            plain = self._on_teachers_grid(found)
        else:
            plain, levels = self.features(pixels), []
        masked, idle = None, None
        if self.weights.mask_weight:
            masked, idle = self._masked_patches(batch, pixels, plain.patches)
        losses = self.losses(plain, masked, teacher)
        if idle is not None:
            losses["loss"] = losses["loss"] + idle
        if levels:
            losses["loss_ladder"] = self._ladder_loss(levels, teacher)
            losses["loss"] = losses["loss"] + self.weights.ladder_weight * losses["loss_ladder"]
        return {**losses, "token_variance": token_variance(plain.patches)}

    def _ladder_loss(self, levels: Sequence[Tensor], teacher: Features) -> Tensor:
        """The mean distance of the student's projected earlier levels, pooled to the teacher's grid."""
        pooled = (to_tokens(F.adaptive_avg_pool2d(each, self.teacher_grid)) for each in levels)
        terms = [
            self.distance(head(tokens, teacher.patches), teacher.patches)
            for head, tokens in zip(self.ladder, pooled, strict=True)
        ]
        return torch.stack(terms).mean()

    def losses(self, plain: Features, masked: Tensor | None, teacher: Features) -> dict[str, Tensor]:
        """The losses of the student's features, its masked patches (B, N, Cs) or None, and the teacher's.

        As in the reference implementation, the CLS that enters L_feat is the output of the CLS head.
        """
        weights, distance = self.weights, self.distance
        target_cls = teacher.cls.unsqueeze(1)
        soft_cls = self.head_cls(plain.cls.unsqueeze(1), target_cls)
        soft = self.head_feature(plain.patches, teacher.patches)
        both = distance(torch.cat([soft_cls, soft], 1), torch.cat([target_cls, teacher.patches], 1))
        losses = {"loss_feature": both, "loss_cls": distance(soft_cls, target_cls)}
        total = weights.feature_weight * both + weights.cls_weight * losses["loss_cls"]
        if masked is not None:
            losses["loss_mask"] = distance(self.head_mask(masked, teacher.patches), teacher.patches)
            total = total + weights.mask_weight * losses["loss_mask"]
        for name, (weight, term, projected) in self.terms.items():
            losses[name] = term(soft if projected else plain.patches, teacher.patches)
            total = total + weight * losses[name]
        return {"loss": total, **losses}

    def features(self, pixels: Tensor, mask: Tensor | None = None) -> Features:
        """The student's features, patches on the teacher's grid."""
        return self._on_teachers_grid(self.student(pixels, mask))

    def _on_teachers_grid(self, found: Features) -> Features:
        return Features(found.cls, resample_tokens(found.patches, self.student.grid, self.teacher_grid))

    def _masked_patches(self, batch: Batch, pixels: Tensor, plain: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patches (B, N, Cs) of the second pass: masked images through the student, the others shared.

        Beside them, if an image stands in, a zero whose gradient is zero for all that its pass uses: so ranks
        reduce the same parameters, and ZeRO-3 gathers them as often.
        """
        rows, masks, _, stand_in = drawn(batch)
        if not len(rows):
            return plain, None
        rows, mask = (
            each.to(pixels.device, non_blocking=True) for each in (rows, masks[self.student.mask_tokens])
        )
        with kept_statistics(batch_norms(self.student)):
            masked = self.features(pixels[rows], mask).patches
        if stand_in:
            return plain, torch.where(torch.zeros_like(masked, dtype=torch.bool), masked, 0).sum()
        return plain.index_copy(0, rows, masked), None


def terms(weights: LossConfig) -> dict[str, tuple[float, Loss, bool]]:
    """The terms that have a weight: their weight, function, and whether it takes projected tokens."""
    found = {}
    for each in fields(weights):
        weight = getattr(weights, each.name)
        if "term" in each.metadata and weight:
            term = pkgutil.resolve_name(each.metadata["term"])
            found[f"loss_{each.name.removesuffix('_weight')}"] = (weight, term, each.metadata["projected"])
    return found


@torch.no_grad()
def token_variance(patches: Tensor) -> Tensor:
    """Variance of (B, N, C) tokens over B·N, over their mean square, 0 to 1; 0 if all are equal."""
    tokens = patches.detach().float().flatten(0, 1)
    power = tokens.square().mean()
    return tokens.var(0, correction=0).mean() / power.clamp_min(torch.finfo(torch.float32).tiny)
