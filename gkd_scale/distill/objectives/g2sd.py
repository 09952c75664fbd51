"""The generic stage of G2SD (Huang et al., "Generic-to-Specific Distillation of Masked Autoencoders",
CVPR 2023): a masked autoencoder whose target is the teacher.

The student sees a random quarter of the patches. A small decoder, thrown away afterwards, gets its tokens
and a mask token in every other place, and predicts the teacher's tokens everywhere:

    L = smooth-L1(D(s), LN(t)), β = 2, the mean over all tokens and channels.

A convolution cannot leave patches out. A student that is no plain transformer sees the whole image with those
three quarters painted in one learned colour, as in SimMIM (Xie et al., CVPR 2022), and the decoder gets its
tokens at every place; G2SD itself is defined for plain transformers only.

The specific stage is ``stage2.py --method g2sd`` on what this stage exports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.distill.draws import Draws
from gkd_scale.distill.objectives.base import Objective, TeacherSpace, draws_of
from gkd_scale.models.families import is_tokens
from gkd_scale.models.masking import VisibleOnly
from gkd_scale.models.students import Student
from gkd_scale.models.tokens import resample_tokens
from gkd_scale.types import Batch

BETA = 2.0
RATIO = 0.75
_HEAD_WIDTH = 32
_WIDEST = 192
"""Largest decoder width: wider students are projected, as in masked autoencoders, to bound its cost."""


class G2sdGeneric(Objective):
    """A student that sees a quarter of the patches, and the decoder that predicts the teacher's tokens."""

    def __init__(self, student: Student, teacher: TeacherSpace, *, depth: int = 2, seed: int = 0) -> None:
        super().__init__(student)
        self.teacher_grid = teacher.grid
        self.draws = Draws(seed, frozenset([student.mask_tokens]), RATIO)
        width = min(student.dim, _WIDEST)
        self.embed = nn.Linear(student.dim, width) if width < student.dim else nn.Identity()
        self.pos_embed = nn.Parameter(torch.zeros(1, student.mask_tokens, width))
        nn.init.normal_(self.pos_embed, std=0.02)
        self._visible: VisibleOnly | None = None
        if is_tokens(student.net):
            self._visible = VisibleOnly(student.net)
            self.mask_token = nn.Parameter(torch.zeros(width))
            nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width,
                    nhead=1 if width % _HEAD_WIDTH else width // _HEAD_WIDTH,
                    dim_feedforward=4 * width,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(depth)
            ),
            nn.LayerNorm(width),
            nn.Linear(width, teacher.dim),
        )

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, masks and the teacher's patches."""
        tensors = batch.pixels, draws_of(batch).masks[self.student.mask_tokens], batch.teacher.patches
        pixels, masks, patches = (tensor.to(self.pos_embed.device, non_blocking=True) for tensor in tensors)
        return pixels, masks, patches

    def losses(self, pixels: Tensor, masks: Tensor, patches: Tensor) -> dict[str, Tensor]:
        """The loss of one micro batch."""
        tokens = self._fill(pixels, masks) if self._visible else self._paint(pixels, masks)
        tokens = self.decoder(tokens + self.pos_embed.to(tokens.dtype))
        prediction = resample_tokens(tokens, self.student.mask_grid, self.teacher_grid).float()
        target = patches.float()
        target = F.layer_norm(target, target.shape[-1:])
        return {"loss": F.smooth_l1_loss(prediction, target, beta=BETA)}

    def _fill(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Tokens of the visible patches, and the mask token in every other place."""
        assert self._visible is not None
        visible = masks.shape[1] - round(RATIO * masks.shape[1])
        # no nonzero(): that would wait for the device
        keep = masks.int().argsort(stable=True, dim=1)[:, :visible]
        self._visible.set(keep)
        tokens = self.embed(self.student(pixels).patches)
        self._visible.set(None)
        full = self.mask_token.to(tokens.dtype).expand(len(masks), self.student.mask_tokens, -1)
        return full.scatter(1, keep[..., None].expand_as(tokens), tokens)

    def _paint(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Tokens of the image whose masked blocks are painted over."""
        tokens: Tensor = self.embed(self.student(pixels, masks).patches)
        return resample_tokens(tokens, self.student.grid, self.student.mask_grid)
