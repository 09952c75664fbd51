"""The order of a cache's samples in an epoch: a pure function of shard sizes, seed and epoch.

Shards are shuffled, then samples within windows of a few shards, so that disk reads stay local.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gkd_scale.order import Epochs
from gkd_scale.randomness import generator
from gkd_scale.types import Int64Array

WINDOW = 4
"""Shards whose samples are mixed."""


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int = WINDOW) -> Int64Array:
    """A permutation of ``range(sum(shard_sizes))``: the samples of one epoch."""
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else sizes
    shards = generator("order.shards", seed, epoch).permutation(len(sizes))
    parts: list[Int64Array] = []
    for number, first in enumerate(range(0, len(shards), max(window, 1))):
        together = [
            np.arange(starts[s], starts[s] + sizes[s]) for s in shards[first : first + max(window, 1)]
        ]
        parts.append(generator("order.samples", seed, epoch, number).permutation(np.concatenate(together)))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


class Order(Epochs):
    """The endless stream of samples over ``shard_sizes``."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, window: int = WINDOW) -> None:
        sizes = tuple(int(size) for size in shard_sizes)
        super().__init__(sum(sizes), lambda epoch: epoch_order(sizes, seed, epoch, window))
