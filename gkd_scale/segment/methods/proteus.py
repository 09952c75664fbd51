"""Proteus: three proxies of a foundation model's objectives (Zhang et al., "Accessing Vision Foundation
Models via ImageNet-1K", ICLR 2025, arXiv 2407.10366).

    L = λ · ( MSE(h_1(cls_s), cls_t) + MSE(h_2([cls_s; s]), [cls_t; t]) + MSE_masked(h_3(s'), t) )

h_i: LayerNorm then Linear. s' comes from a second pass whose patches are masked by half, and its error is
counted on the masked patches only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.models.backbone import Backbone
from gkd_scale.models.masking import MaskPixels, MaskToken
from gkd_scale.models.outputs import BackboneOutputs
from gkd_scale.models.tokens import resample_tokens
from gkd_scale.segment.methods.base import FeatureMethod, MethodInputs, MethodTeacher, random_masks


class Proteus(FeatureMethod):
    """``weight`` λ of all three terms; ``ratio``: the share of patches that are masked."""

    def __init__(
        self, backbone: Backbone, teacher: MethodTeacher, *, weight: float = 1.0, ratio: float = 0.5
    ) -> None:
        super().__init__(backbone, teacher)
        self.weight, self.ratio = weight, ratio
        self.head_cls, self.head_feature, self.head_patch = (
            nn.Sequential(nn.LayerNorm(self.student_dim), nn.Linear(self.student_dim, self.teacher_dim))
            for _ in range(3)
        )
        self.mask: MaskToken | MaskPixels = (
            MaskToken(backbone.net.patch_embed, self.student_dim)  # type: ignore[arg-type]
            if backbone.is_tokens
            else MaskPixels()
        )

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        student, (cls, patches) = inputs.student, inputs.teacher_features
        tokens = torch.cat([student.features.cls[:, None], self.student_tokens(student)], 1)
        target = torch.cat([cls[:, None], patches], 1)
        terms = {
            "loss_cls": F.mse_loss(self.head_cls(student.features.cls).float(), cls),
            "loss_feature": F.mse_loss(self.head_feature(tokens).float(), target),
            "loss_patch": self._masked_loss(inputs),
        }
        return {name: self.weight * term for name, term in terms.items()}

    def _masked_loss(self, inputs: MethodInputs) -> Tensor:
        """The error on masked places; the mask is resampled to the teacher's grid."""
        images, grid = len(inputs.pixels), inputs.student.grid
        masks = random_masks(images, grid[0] * grid[1], self.ratio, inputs.pixels.device)
        prediction = self.head_patch(self.student_tokens(self._second_pass(inputs, masks))).float()
        weight = resample_tokens(masks.float()[..., None], grid, self.teacher_grid)
        error = (prediction - inputs.teacher_features.patches).square().mean(2, keepdim=True)
        return (error * weight).sum() / weight.sum()

    def _second_pass(self, inputs: MethodInputs, masks: Tensor) -> BackboneOutputs:
        if isinstance(self.mask, MaskPixels):
            colour = self.mask
            return inputs.again(lambda pixels: colour(pixels, masks, inputs.student.grid))
        self.mask.set(masks)
        try:
            return inputs.again(lambda pixels: pixels)
        finally:
            self.mask.set(None)
