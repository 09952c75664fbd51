"""InfoNCE over patches: a projected student token finds its teacher token among those of its image.

    L = mean_n -log( exp(ŝ_n · t̂_n / τ) / Σ_m exp(ŝ_n · t̂_m / τ) ),  τ = 0.07,

with L2-normalised tokens (van den Oord et al., "Representation Learning with Contrastive Predictive Coding",
arXiv 1807.03748; over dense features as in CRD, Tian et al., ICLR 2020). Negatives are the other patches of
the same image, so the loss is the mean of per-image losses and does not depend on how a batch is split.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07


def contrast(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of projected patches (B, N, C) and the teacher's (B, N, C), in float32."""
    s_hat, t_hat = (F.normalize(tokens.float(), dim=-1) for tokens in (student, teacher))
    logits = s_hat @ t_hat.transpose(1, 2) / TEMPERATURE
    places = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), places.flatten())
