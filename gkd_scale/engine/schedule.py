"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math


def _warmup(step: int, base: float, warmup: int, warmup_lr: float) -> float:
    return warmup_lr + (base - warmup_lr) * step / warmup


def cosine(
    step: int, *, base: float, steps: int, warmup: int = 0, warmup_lr: float = 1e-6, final: float = 1e-5
) -> float:
    """Linear warmup from ``warmup_lr`` to ``base``, then half a cosine down to ``final`` at ``steps``."""
    if step < warmup:
        return _warmup(step, base, warmup, warmup_lr)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    low = min(final, base)
    return low + (base - low) * 0.5 * (1 + math.cos(math.pi * progress))


def poly(
    step: int, *, base: float, steps: int, power: float = 0.9, warmup: int = 0, warmup_lr: float = 0.0
) -> float:
    """Linear warmup, then ``base·(1 - progress)^power``, as usual for segmentation."""
    if step < warmup:
        return _warmup(step, base, warmup, warmup_lr)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return float(base * (1 - progress) ** power)
