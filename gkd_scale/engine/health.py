"""What is watched while a run trains: a loss that is no number, a dead model, a loop that waits for data."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from gkd_scale.errors import UserError

TOKEN_VARIANCE = "token_variance"
"""The metric that says a model is alive: variance of its tokens over their mean square, 0 to 1."""

DEAD = 1e-6
"""A token variance below this is a model that says the same everywhere."""

PATIENCE = 20
"""Steps in a row that a model may be dead before its run stops."""

WINDOW = 200
"""Steps over which the time spent waiting for data is looked at."""

WAITS = 0.5
"""Share of that time above which the user hears of it."""


class HealthCheck:
    """The health of one model, from its metrics."""

    def __init__(self) -> None:
        self._dead = 0

    def check(self, means: dict[str, float], step: int) -> None:
        """UserError where a loss is not finite, or where the model has been dead for a while."""
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
    """The share of the last steps' time that was spent waiting for data."""

    def __init__(self, cause: Callable[[], str]) -> None:
        self._cause = cause
        self._steps: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._told = False

    def step(self, waited: float, seconds: float) -> str | None:
        """Take in one step; a remark with the cause, once, where the last steps mostly waited."""
        self._steps.append((waited, seconds))
        if self._told or len(self._steps) < WINDOW:
            return None
        share = sum(waited for waited, _ in self._steps) / sum(seconds for _, seconds in self._steps)
        if share <= WAITS:
            return None
        self._told = True
        return f"{share:.0%} of the last {WINDOW} steps went into waiting for data: {self._cause()}"
