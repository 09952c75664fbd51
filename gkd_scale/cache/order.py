"""The order of a cache's samples in an epoch: a pure function of shard sizes, seed and epoch.

Shards are shuffled, then samples within windows of a few shards, so that disk reads stay local. A position
costs the window that it lies in: memory is a few integers a shard and the samples of a few windows, so that
each rank holds 10^9 samples' order in tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gkd_scale.randomness import generator
from gkd_scale.types import Int64Array

WINDOW = 4
"""Shards whose samples are mixed."""


class _Epoch(NamedTuple):
    """The ``shards`` of an epoch in the order of reading, and the offset where each window ends."""

    shards: Int64Array
    ends: Int64Array


class Order:
    """The endless stream of samples over ``shard_sizes``; an epoch is a permutation of all of them."""

    def __init__(self, shard_sizes: Sequence[int] | Int64Array, seed: int, window: int = WINDOW) -> None:
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.samples = int(self._sizes.sum())
        assert self.samples > 0, "an order needs samples"
        self._seed, self._window = seed, max(window, 1)
        self._epoch = lru_cache(maxsize=2)(self._shuffle_shards)
        self._samples = lru_cache(maxsize=4)(self._shuffle_samples)

    def position(self, p: int) -> tuple[int, int]:
        """Position ``p`` of the stream to (epoch, index of the sample)."""
        epoch, offset = divmod(p, self.samples)
        ends = self._epoch(epoch).ends
        number = int(ends.searchsorted(offset, side="right"))
        return epoch, int(self._samples(epoch, number)[offset - int(ends[number])])

    def _shuffle_shards(self, epoch: int) -> _Epoch:
        shards = generator("order.shards", self._seed, epoch).permutation(len(self._sizes))
        windows = np.arange(0, len(shards), self._window)
        return _Epoch(shards, np.cumsum(np.add.reduceat(self._sizes[shards], windows)))

    def _shuffle_samples(self, epoch: int, number: int) -> Int64Array:
        """The samples of window ``number``, which ends at ``ends[number]``: count back from there."""
        first = number * self._window
        samples = [
            np.arange(self._starts[shard], self._starts[shard] + self._sizes[shard])
            for shard in self._epoch(epoch).shards[first : first + self._window]
        ]
        return generator("order.samples", self._seed, epoch, number).permutation(np.concatenate(samples))
