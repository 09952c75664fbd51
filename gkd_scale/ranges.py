"""Ranges of numbers: declared once with an option, enforced for YAML, flags and search spaces alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gkd_scale.errors import short

MOST = 2**63 - 1
"""No whole number is larger than what 64 bits hold."""


@dataclass(frozen=True)
class Range:
    """Finite numbers from ``ge`` or above ``gt``, to ``le`` or below ``lt``; only whole ones if ``whole``.

    ``hint`` is what to do about a number outside.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    whole: bool = False
    hint: str = ""

    def __contains__(self, number: float) -> bool:
        return (
            math.isfinite(number)
            and (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
            and (self.lt is None or number < self.lt)
            and (not self.whole or float(number).is_integer())
        )

    def text(self) -> str:
        """In words, after "must be": ``at least 0 and below 1``."""
        bounds = (("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt))
        parts = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        what = ["a whole number"] if self.whole else []
        return ", ".join([*what, " and ".join(parts)] if parts else what) or "a number"

    def wrong(self, value: Any) -> str:
        """What is wrong with a number, a text that says one, or a list of them; "" if nothing is.

        The check of the option's type refuses texts that are no numbers.
        """
        if isinstance(value, (list, tuple)):
            return next(filter(None, map(self.wrong, value)), "")
        if isinstance(value, bool):
            return f"{str(value).lower()}: it must be a number, {self.text()}"
        number = _number(value)
        if number is None or number in self:
            return ""
        finite = "" if math.isfinite(number) else ", and finite"
        return f"{short(str(value), 40)}: it must be {self.text()}{finite}"


def _number(value: Any) -> float | None:
    """``value`` as a number, infinite beyond what 64 bits hold; None for no number."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)):
        return None
    if abs(value) > MOST:
        return math.inf if value > 0 else -math.inf
    return float(value)


COUNT = Range(ge=1, hint="give at least 1")
SIZE = Range(ge=1, le=1_000_000, hint="give at least 1")
"""How many things are held at once."""
NUMBER = Range(ge=0, hint="give 0 or more")
SEED = Range(ge=0, hint="every seed is one run; there is no random one")
MINUTES = Range(gt=0, le=60 * 24 * 30, hint="for example 30")
RANKS = Range(ge=1, le=100_000, hint="the number of ranks: GPUs over all nodes")
THREADS = Range(ge=0, le=1024, hint="threads; 0 works without any")
EPOCHS = Range(gt=0, le=1e6, hint="passes over the images, more than 0")
PIXELS = Range(ge=1, le=1024, hint="pixels on a side, for example 16")
LEVEL = Range(ge=-1000, le=1000, hint="a feature level of the teacher, 0 for its first")
MEAN = Range(ge=0, le=1, hint="it is of pixels in 0..1: divide by 255")
DEVIATION = Range(gt=0, le=1, hint="it is of pixels in 0..1 and above 0: divide by 255")
SHARE = Range(ge=0, le=1, hint="a share, from 0 to 1")
SOME = Range(gt=0, le=1, hint="a share, above 0 and up to 1")
PART = Range(gt=0, lt=1, hint="a share, between 0 and 1")
STRENGTH = Range(ge=0, lt=1, hint="a strength from 0 to below 1")
DROP_PATH = Range(ge=0, lt=1, hint="the share of a batch that skips a block, for example 0.1")
DECAY = Range(ge=0, lt=1, hint="a decay from 0 to below 1, for example 0.999")
POWER = Range(ge=0, le=1, hint="a power from 0 to 1")
PEAK_RATE = Range(gt=0, le=1, hint="a peak learning rate, for example 1e-3")
RATE = Range(ge=0, le=1, hint="a learning rate, for example 1e-6")
WARMUP = Range(ge=0, le=1, hint="a share of the steps, not their number: for example 0.05")
WEIGHT_DECAY = Range(ge=0, le=10, hint="for example 0.05")
WEIGHT = Range(ge=0, le=1e6, hint="the factor of a loss, for example 1")
PROPORTION = Range(gt=0, le=1e9, hint="give a positive number")
SCALE = Range(gt=0, le=100, hint="factors above 0, for example 1")
GIGABYTES = Range(gt=0, le=1e9, hint="GB, more than 0")
