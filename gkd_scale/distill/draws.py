"""The random numbers of stage 1: pure functions of (seed, epoch, sample), drawn as a batch is loaded.

An objective says what it needs as :class:`Draws`. The source of the batches calls it on its reading threads,
so that the step itself is made of tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd_scale.distill.jitter import jitter_factors
from gkd_scale.models.masking import masked_positions, random_mask
from gkd_scale.randomness import generator
from gkd_scale.types import Batch, Drawn

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Draws:
    """Masks over each number of patches in ``tokens``, one for each grid that students are masked on.

    ``probability``: the share of a global batch's images that are masked; ``ratio``: the share of their
    patches. ``jitter``: the strength of the student's colour jitter, 0 for none. ``ranks``: how many train
    together. If there are several, a micro batch without a masked image lets its first one stand in.
    ``teachers``: how many teach; ``drop``: the probability that one of them is left out for an image. If all
    would be, one drawn at random stays.
    """

    seed: int
    tokens: frozenset[int] = frozenset()
    ratio: float = 0.5
    probability: float = 1.0
    jitter: float = 0.0
    ranks: int = 1
    teachers: int = 1
    drop: float = 0.0

    @property
    def keep_rate(self) -> float:
        """The probability that an image keeps a teacher."""
        return 1 - self.drop + self.drop**self.teachers / self.teachers

    def __call__(self, sids: Sequence[str], epochs: Sequence[int], positions: Sequence[int]) -> Drawn:
        """The draws for the samples of a micro batch, given their places in the global batch."""
        rows = masked_positions(positions, self.probability) if self.tokens else []
        stand_in = bool(self.tokens) and self.ranks > 1 and self.probability > 0 and not rows
        rows = [0] if stand_in else rows
        samples = [(sids[row], epochs[row]) for row in rows]
        masks = {tokens: self._masks(samples, tokens) for tokens in sorted(self.tokens)}
        strength = self.jitter
        factors = jitter_factors(sids, epochs, strength, self.seed) if strength else torch.empty(len(sids), 0)
        teacher_rows = self._teacher_rows(sids, epochs) if self.drop else ()
        return Drawn(torch.tensor(rows, dtype=torch.int64), masks, factors, stand_in, teacher_rows)

    def _teacher_rows(self, sids: Sequence[str], epochs: Sequence[int]) -> tuple[Tensor, ...]:
        """For each teacher the rows of the images that keep it."""
        masks = [self._keep_mask(sid, epoch) for sid, epoch in zip(sids, epochs, strict=True)]
        return tuple(torch.from_numpy(np.flatnonzero(keep)) for keep in np.array(masks).T)

    def _keep_mask(self, sid: str, epoch: int) -> BoolArray:
        """Which teachers (T,) an image keeps: at least one."""
        rng = generator("teacher.drop", self.seed, epoch, sid)
        keep: BoolArray = rng.random(self.teachers) >= self.drop
        fallback = int(rng.integers(self.teachers))
        keep[fallback] |= not keep.any()
        return keep

    def _masks(self, samples: Sequence[tuple[str, int]], tokens: int) -> Tensor:
        masks = [random_mask(sid, epoch, self.seed, tokens, self.ratio) for sid, epoch in samples]
        return torch.stack(masks) if masks else torch.empty(0, tokens, dtype=torch.bool)

    def add(self, batch: Batch) -> Batch:
        """``batch`` with its draws."""
        return replace(batch, drawn=self(batch.sids, batch.epochs, batch.positions))


def together(draws: Iterable[Draws]) -> Draws:
    """The draw of several students that learn from the same batches by the same options."""
    first, *others = draws
    tokens = first.tokens.union(*(draw.tokens for draw in others))
    assert all(replace(draw, tokens=tokens) == replace(first, tokens=tokens) for draw in others)
    return replace(first, tokens=tokens)
