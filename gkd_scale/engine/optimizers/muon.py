"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon), on whole matrices and on ZeRO's flat tensors.

    m ← μ·m + (1-μ)·g     u = μ·m + (1-μ)·g     w ← w - η·λ·w - η·0.2·√max(A, B)·NS(u)

for each matrix (A, B); NS is five Newton-Schulz steps towards the nearest orthogonal matrix, in bfloat16.
With the factor 0.2·√max(A, B) a step is as large as AdamW's, so learning rate and weight decay carry over
(Liu et al. 2025, arXiv 2502.16982). All other parameters take AdamW's step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gkd_scale.engine.optimizers.layout import WHOLE, Whole

MOMENTUM = 0.95
MOMENTS = ("exp_avg",)
"""The names of AdamW's moments that a matrix keeps."""
_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.AdamW):
    """Groups with ``matrix`` take Muon's step. ``layouts`` says of each flat tensor what it holds."""

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        self.layouts: dict[Tensor, Whole] = {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["matrix"]]
        super().step()
        self.param_groups = groups
        for group in groups:
            for parameter in group["params"] if group["matrix"] else ():
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"], state["exp_avg"] = torch.tensor(0.0), torch.zeros_like(parameter)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(state["exp_avg"], MOMENTUM)
        layout = self.layouts.get(parameter, WHOLE)
        layout.take(update, [_direction(matrix) for matrix in layout.matrices(update)])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def _direction(matrix: Tensor) -> Tensor:
    return orthogonal(matrix).float() * (0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix near to ``matrix`` (A, B), roughly: singular values between 0.7 and 1.2."""
    a, b, c = _QUINTIC
    wide = matrix.bfloat16()
    if tall := matrix.shape[0] > matrix.shape[1]:
        wide = wide.T
    wide = wide / wide.norm().clamp_min(1e-7)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if tall else wide
