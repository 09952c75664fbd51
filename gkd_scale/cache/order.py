"""Which sample comes when: pure functions, no state.

The stream of samples is endless: global position ``p`` belongs to epoch ``p // n`` and is sample
``epoch_order(...)[p % n]``. Every sample is used exactly once an epoch and global batches run across
the border of epochs. Step ``s`` takes positions ``[s·G, (s+1)·G)``; ranks and micro batches share those
out, so the global batch is the same for every world size, and to resume is to know ``s``.

Shards are shuffled, then samples within windows of a few shards, so that disk reads stay local.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from gkd_scale.errors import ConfigError
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


class Order:
    """The endless stream of samples over ``shard_sizes``."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, window: int = WINDOW) -> None:
        sizes = tuple(int(size) for size in shard_sizes)
        self.samples = sum(sizes)
        assert self.samples > 0, "an order needs samples"
        self._epoch = lru_cache(maxsize=2)(lambda epoch: epoch_order(sizes, seed, epoch, window))

    def position(self, p: int) -> tuple[int, int]:
        """Global position ``p`` to (epoch, index of the sample)."""
        epoch, offset = divmod(p, self.samples)
        return epoch, int(self._epoch(epoch)[offset])


def micro_positions(
    step: int, micro_index: int, rank: int, world: int, micro_batch: int, accumulation: int, global_batch: int
) -> range:
    """Global positions of micro batch ``micro_index`` of ``step`` on ``rank``."""
    check_batches(world, micro_batch, accumulation, global_batch)
    start = step * global_batch + (micro_index * world + rank) * micro_batch
    return range(start, start + micro_batch)


def check_batches(world: int, micro_batch: int, accumulation: int, global_batch: int) -> None:
    """ConfigError unless world x micro batch x accumulation is the global batch."""
    if min(world, micro_batch, accumulation) < 1 or world * micro_batch * accumulation != global_batch:
        raise ConfigError(
            f"global batch {global_batch} is not {world} ranks x micro batch {micro_batch} "
            f"x accumulation {accumulation}",
            "choose a global batch that the number of ranks divides",
        )
