"""Checks while a run trains: is the loss finite, is the model alive, does the loop wait for data?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from gkd_scale.errors import UserError

TOKEN_VARIANCE = "token_variance"
"""The metric of a living model: variance of its tokens divided by their mean square, 0 to 1."""

DEAD = 1e-6
"""Below this token variance, a model is dead: it gives the same token everywhere."""

PATIENCE = 20
"""A run stops if its model is dead for this many steps in a row."""

WINDOW = 200
"""Number of steps over which :class:`DataWaitMonitor` measures the share of waiting."""

WAITS = 0.5
"""Share of waiting above which the user gets a remark."""


class HealthCheck:
    """The health of one model, from its metrics."""

    def __init__(self) -> None:
        self._dead = 0

    def check(self, means: dict[str, float], step: int) -> None:
        """Raise UserError if a loss is not finite, or if the model is dead for :data:`PATIENCE` steps."""
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"{', '.join(bad)} is not finite at step {step}",
                "set gradient_clipping in the DeepSpeed config and go on from the last checkpoint, or start "
                "anew in another --out with a lower --lr or a longer warmup",
            )
        variance = means.get(TOKEN_VARIANCE, 1.0)
        self._dead = self._dead + 1 if variance < DEAD else 0
        if self._dead >= PATIENCE:
            raise UserError(
                f"the student is dead: at step {step} its tokens have been alike for {PATIENCE} steps "
                f"({TOKEN_VARIANCE} {variance:.1e}, below {DEAD:.0e})",
                "lower --lr or lengthen the warmup, and start anew in another --out; if the images are "
                "blank, mend the cache",
            )


class DataWaitMonitor:
    """Measures which share of the last :data:`WINDOW` steps' time the loop waited for data."""

    def __init__(self, cause: Callable[[], str]) -> None:
        self._cause = cause
        self._steps: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._remarked = False

    def step(self, waited: float, seconds: float) -> str | None:
        """Add one step. Returns a remark with the cause, once, if the loop mostly waited."""
        self._steps.append((waited, seconds))
        if self._remarked or len(self._steps) < WINDOW:
            return None
        share = sum(waited for waited, _ in self._steps) / sum(seconds for _, seconds in self._steps)
        if share <= WAITS:
            return None
        self._remarked = True
        return f"{share:.0%} of the last {WINDOW} steps went into waiting for data: {self._cause()}"
