"""What stage 1 compares: one file a loss, with its formula and source.

A *distance* compares the student's projected tokens with the teacher's conditioned ones, and is what L_feat,
L_mask and L_cls are made of; :data:`DISTANCES` names them. A *term* is added with a weight of its own. To add
one: a file here, a name in :data:`DISTANCES` or a weight in ``distill/config.py``, and its test.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gkd_scale.distill.losses.cosine import cosine
from gkd_scale.distill.losses.mse import mse

Distance = Callable[[Tensor, Tensor], Tensor]
"""(student, teacher), both (B, N, C), to a scalar in float32: the mean over tokens."""

DISTANCES: dict[str, Distance] = {"mse": mse, "cosine": cosine}
