"""Cosine and smooth-L1: each token's direction, and with less weight its size.

    d(s, t) = α · mean (1 - cos(s_n, t_n)) + (1 - α) · mean smooth-L1(s, t)

Theia (Shang et al., "Theia: Distilling Diverse Vision Foundation Models for Robot Learning", CoRL 2024,
arXiv 2407.20179) takes α = 0.9 and standardised teacher tokens, as AM-RADIO (arXiv 2312.06709) does. A cosine
weighs all tokens alike; a squared error weighs those with large norms more.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

ALPHA = 0.5


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """The distance of tokens (B, N, C), in float32; directions are those of whole tokens."""
    student, teacher = student.float(), teacher.float()
    direction = 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    return ALPHA * direction + (1 - ALPHA) * F.smooth_l1_loss(student, teacher)
