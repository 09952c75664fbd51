"""Relations between patches: the student's patches should resemble each other as the teacher's do.

    L = mean (Ŝ Ŝᵀ - T̂ T̂ᵀ)² over the N x N pairs of each image,

with Ŝ and T̂ the L2-normalised patch tokens. This is DINOv3's Gram anchoring (Siméoni et al., arXiv
2508.10104, equation 2), after relational distillation (Park et al., CVPR 2019). No projector is needed, so it
shapes the student's own tokens, which stage 2 keeps.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of patch tokens (B, N, Cs) and (B, N, Ct), in float32."""
    s_hat, t_hat = (F.normalize(tokens.float(), dim=-1) for tokens in (student, teacher))
    return F.mse_loss(s_hat @ s_hat.transpose(1, 2), t_hat @ t_hat.transpose(1, 2))
