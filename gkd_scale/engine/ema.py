"""Exponential moving average of the trained parameters; each rank averages the part that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gkd_scale.engine import zero


class Ema:
    """average ← d·average + (1 - d)·parameter after each step, d = min(decay, (1 + step) / (10 + step)).

    Because d starts small, the average of a short run forgets its initialisation. The average is elementwise,
    so each rank averages the part that it holds, and ZeRO-3 gathers nothing. Averages are float32.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: zero.local(p).float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after optimizer step number ``step`` (from 1) to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names = list(self.average)
        average = [self.average[name] for name in names]
        current = [zero.local(self.parameters[name]).float() for name in names]
        torch._foreach_lerp_(average, current, 1 - decay)

    def full(self) -> dict[str, Tensor]:
        """Whole averages by name. Collective under ZeRO-3."""
        return {name: zero.gather(self.parameters[name], part) for name, part in self.average.items()}

    @torch.no_grad()
    def load(self, whole: dict[str, Tensor]) -> None:
        """Set the averages from whole tensors by name."""
        for name, part in self.average.items():
            part.copy_(zero.scatter(self.parameters[name], whole[name]))

    @contextmanager
    def apply(self) -> Iterator[None]:
        """Inside the block, the module's parameters are the averages, in the precision of the parameters.

        :func:`zero.exact` has them in fp32.
        """
        backup = {name: zero.local(p).clone() for name, p in self.parameters.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                zero.local(parameter).copy_(self.average[name])
                setattr(parameter, zero.AVERAGE, self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    zero.local(parameter).copy_(backup[name])
                    delattr(parameter, zero.AVERAGE)
