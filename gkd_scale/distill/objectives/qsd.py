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

With several teachers the passes are shared, and each teacher t has heads, a ladder and a conditioning of its
own: L = sum_t w_t L_t / sum_t w_t, so that a learning rate means the same for one teacher as for many, and
only the ratios of the weights count. Where teachers are left out for some images, L_t is the sum over the
images that keep t, divided by how many do so on average: their mean in expectation, and the same for one rank
as for many.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gkd_scale.distill.config import LossConfig, MaskConfig, QsdConfig
from gkd_scale.distill.draws import Draws
from gkd_scale.distill.jitter import jitter
from gkd_scale.distill.objectives.base import Objective, TeacherSpace, draws_of
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.distill.teacher_heads import Output, TeacherHeads
from gkd_scale.engine.batch_norm import batch_norms, kept_statistics
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.students import Student
from gkd_scale.types import Batch, Features


class Second(NamedTuple):
    """The second pass: the images ``rows`` (R,) and their ``mask`` (R, tokens). ``stand_in``: none of them is
    masked, and the result is left out.
    """

    rows: Tensor
    mask: Tensor
    stand_in: bool


Subset = tuple[Tensor | None, float]
"""The rows (K,) of the images that keep a teacher, None for all, and the factor of their mean loss."""


class Distiller(Objective):
    """A student, and for each of its ``teachers`` heads and a ladder; ``"loss"`` is their weighted mean.

    The modules of a single teacher are the objective's own (``head_feature``, ...); those of several are in
    ``teachers``.
    """

    head_feature: QsdHead
    head_mask: QsdHead
    head_cls: QsdHead
    ladder: nn.ModuleList
    conditioning: Conditioning

    def __init__(
        self,
        student: Student,
        *teachers: TeacherSpace,
        loss: LossConfig | None = None,
        qsd: QsdConfig | None = None,
        mask: MaskConfig | None = None,
        jitter: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(student)
        self.weights = loss or LossConfig()
        masking, drop = mask or MaskConfig(), self.weights.teacher_drop
        sizes = frozenset([student.mask_tokens] if self.weights.mask_weight else ())
        self.draws = Draws(
            seed, sizes, masking.ratio, masking.probability, jitter, teachers=len(teachers), drop=drop
        )
        self.heads = tuple(TeacherHeads(student, t, self.weights, qsd or QsdConfig()) for t in teachers)
        if len(self.heads) == 1:
            for name, module in self.heads[0].named_children():
                self.add_module(name, module)
        else:
            self.teachers = nn.ModuleList(self.heads)
        if not self.weights.mask_weight:  # no gradient would reach it
            student.mask.requires_grad_(False)

    def inputs(self, batch: Batch) -> tuple[Tensor, list[Features], Second | None, list[Subset]]:
        """Pixels, the teachers' features, the second pass and which images keep which teacher."""
        device = next(self.heads[0].parameters()).device
        pixels = batch.pixels.to(device, non_blocking=True)
        if self.draws.jitter:
            pixels = jitter(pixels, draws_of(batch).jitter.to(device, non_blocking=True))
        targets = [Features(*(t.to(device, non_blocking=True) for t in item)) for item in batch.teachers]
        second = None
        if self.weights.mask_weight and len((draws := draws_of(batch)).masked):
            rows, mask = draws.masked, draws.masks[self.student.mask_tokens]
            rows, mask = (tensor.to(device, non_blocking=True) for tensor in (rows, mask))
            second = Second(rows, mask, draws.stand_in)
        subsets = [self._subset(batch, teacher, device) for teacher in range(len(self.heads))]
        return pixels, targets, second, subsets

    def losses(
        self, pixels: Tensor, targets: list[Features], second: Second | None, subsets: list[Subset]
    ) -> dict[str, Tensor]:
        """Losses of one micro batch, each the mean over all its elements, and ``token_variance``.

        With several teachers ``loss``, and those of each as ``loss/NAME``, ``loss_feature/NAME``, ...
        """
        if len(self.heads[0].ladder):
            plain, levels = self.student.with_levels(pixels)
        else:
            plain, levels = self.student(pixels), []
        output, zero = Output(plain, levels), None
        if second is not None:
            output, zero = self._with_masked(second, pixels, output)
        losses = self._compare(output, targets, subsets)
        if zero is not None:
            losses["loss"] = losses["loss"] + zero
        return {**losses, "token_variance": token_variance(self.heads[0].on_grid(plain).patches)}

    def _compare(self, output: Output, targets: list[Features], subsets: list[Subset]) -> dict[str, Tensor]:
        """The losses of each teacher, and their weighted mean."""
        if len(self.heads) == 1:
            return self.heads[0].forward(output, targets[0])
        total = sum(heads.weight for heads in self.heads)
        losses: dict[str, Tensor] = {}
        shares = []
        for heads, teacher, (rows, share) in zip(self.heads, targets, subsets, strict=True):
            teacher_losses = heads.forward(output, teacher, rows)
            losses |= {f"{name}/{heads.name}": share * value for name, value in teacher_losses.items()}
            shares.append(heads.weight / total * losses[f"loss/{heads.name}"])
        return {"loss": torch.stack(shares).sum(), **losses}

    def _subset(self, batch: Batch, teacher: int, device: torch.device) -> Subset:
        """The rows of the images that keep a teacher, and the factor of their mean loss.

        If none does, the first one stands in with a factor of 0: every rank does the same collectives.
        """
        if not self.draws.drop:
            return None, 1.0
        rows = draws_of(batch).kept[teacher]
        share = len(rows) / (len(batch.sids) * self.draws.keep_rate)
        return (rows if len(rows) else rows.new_zeros(1)).to(device, non_blocking=True), share

    def features(self, pixels: Tensor, mask: Tensor | None = None) -> Features:
        """The student's features, patches on the first teacher's grid."""
        return self.heads[0].on_grid(self.student(pixels, mask))

    def _with_masked(self, second: Second, pixels: Tensor, output: Output) -> tuple[Output, Tensor | None]:
        """``output`` with the second pass, which masked images go through; the others' patches are shared.

        If an image stands in, it returns a zero too, whose gradient is zero for all that its pass uses: ranks
        reduce the same parameters, and ZeRO-3 gathers them as often.
        """
        with kept_statistics(batch_norms(self.student)):
            masked = self.student(pixels[second.rows], second.mask).patches
        if second.stand_in:
            return output, torch.where(torch.zeros_like(masked, dtype=torch.bool), masked, 0).sum()
        return output._replace(rows=second.rows, masked=masked), None


@torch.no_grad()
def token_variance(patches: Tensor) -> Tensor:
    """Variance of (B, N, C) tokens over B·N, over their mean square, 0 to 1; 0 if all are equal."""
    tokens = patches.detach().float().flatten(0, 1)
    power = tokens.square().mean()
    return tokens.var(0, correction=0).mean() / power.clamp_min(torch.finfo(torch.float32).tiny)
