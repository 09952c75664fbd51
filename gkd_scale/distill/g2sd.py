"""The generic stage of G2SD (Huang et al., "Generic-to-Specific Distillation of Masked Autoencoders",
CVPR 2023): a masked autoencoder whose target is the teacher.

The student sees a random quarter of the patches. A small decoder, thrown away afterwards, gets its tokens
and a mask token in every other place, and predicts the teacher's tokens everywhere:

    L = smooth-L1(D(s), LN(t)), β = 2, the mean over all tokens and channels.

The specific stage is ``stage2.py --method g2sd`` on what this stage exports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.models.masking import VisibleOnly, random_mask
from gkd_scale.models.students import Student
from gkd_scale.models.tokens import resample_tokens
from gkd_scale.types import Batch, Grid

BETA = 2.0
RATIO = 0.75
_HEAD_WIDTH = 32


class Generic(nn.Module):
    """``forward(batch)`` returns the loss; the student must be a plain vision transformer (ModelError)."""

    def __init__(
        self, student: Student, teacher_dim: int, teacher_grid: Grid, *, depth: int = 2, seed: int = 0
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher_grid = teacher_grid
        self.seed = seed
        self._visible = VisibleOnly(student.net)
        width = student.dim
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.pos_embed = nn.Parameter(torch.zeros(1, student.mask_tokens, width))
        for parameter in (self.mask_token, self.pos_embed):
            nn.init.normal_(parameter, std=0.02)
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
            nn.Linear(width, teacher_dim),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of one micro batch; what is masked is a function of seed, epoch and sample."""
        device = self.mask_token.device
        masks = torch.stack([self._mask(*which) for which in zip(batch.sids, batch.epochs, strict=True)])
        keep = (~masks).nonzero()[:, 1].view(len(masks), -1).to(device)
        self._visible.set(keep)
        seen = self.student(batch.pixels.to(device, non_blocking=True)).patches
        self._visible.set(None)
        tokens = self.mask_token.to(seen.dtype).expand(len(masks), self.student.mask_tokens, -1)
        tokens = tokens.scatter(1, keep[..., None].expand_as(seen), seen) + self.pos_embed.to(seen.dtype)
        found = resample_tokens(self.decoder(tokens), self.student.grid, self.teacher_grid).float()
        target = batch.teacher.patches.to(device, non_blocking=True).float()
        target = F.layer_norm(target, target.shape[-1:])
        return {"loss": F.smooth_l1_loss(found, target, beta=BETA)}

    def _mask(self, sid: str, epoch: int) -> Tensor:
        return random_mask(sid, epoch, self.seed, self.student.mask_tokens, RATIO)
