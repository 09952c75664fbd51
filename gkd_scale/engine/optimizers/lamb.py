"""LAMB (You et al., ICLR 2020, arXiv 1904.00962, algorithm 2), also on ZeRO's flat tensors.

    m ← β1·m + (1-β1)·g     v ← β2·v + (1-β2)·g²     u = m̂ / (√v̂ + ε) + λ·w     w ← w - η·r·u

with r = |w| / |u| for each parameter, 1 if one of them is 0. As in timm's ``Lamb``, parameters without weight
decay (norms, biases) have r = 1; DeepSpeed clips gradients, so nothing is clipped here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gkd_scale.engine.optimizers.layout import WHOLE, Whole

EPS = 1e-6


class Lamb(torch.optim.Optimizer):
    """``layouts`` says of each flat tensor what it holds; the others are whole parameters."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})
        self.layouts: dict[Tensor, Whole] = {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                self._step(params, group)

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        updates = self._adam(params, *group["betas"])
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            self._scale(params, updates)
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _adam(self, params: list[Tensor], beta1: float, beta2: float) -> list[Tensor]:
        """The moments' step: m̂ / (√v̂ + ε)."""
        grads = [p.grad for p in params if p.grad is not None]
        states = [self._state(p) for p in params]
        first, second = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        step = float(states[0]["step"])
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, math.sqrt(1 - beta2**step))
        torch._foreach_add_(denominator, EPS)
        torch._foreach_mul_(denominator, 1 - beta1**step)
        return list(torch._foreach_div(first, denominator))

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        return state

    def _scale(self, params: list[Tensor], updates: list[Tensor]) -> None:
        """Multiply each parameter's update by r."""
        for parameter, update in zip(params, updates, strict=True):
            layout = self.layouts.get(parameter, WHOLE)
            views = layout.views(update)
            squares = torch.stack([_squares(layout.views(parameter), parameter), _squares(views, parameter)])
            weight, change = layout.totals(squares).sqrt()
            ratio = torch.where((weight > 0) & (change > 0), weight / change, 1.0)
            if views:
                torch._foreach_mul_(views, list(ratio.unbind()))


def _squares(parts: list[Tensor], like: Tensor) -> Tensor:
    """The squared norm of each of ``parts``."""
    return torch.stack(torch._foreach_norm(parts)).square() if parts else like.new_zeros(0)
