"""Mean squared error: the distance of the published QSD (arXiv 2603.02554).

d(s, t) = mean (s - t)² over all elements
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over all elements, in float32."""
    return F.mse_loss(student.float(), teacher.float())
