"""The endless stream of training samples that both stages read: pure functions of positions, no state.

Position ``p`` of the stream belongs to epoch ``p // n`` of ``n`` samples. An epoch uses every sample exactly
once, and global batches run across the border of two epochs. Step ``s`` takes the positions
``[s·G, (s+1)·G)``; micro batches and ranks share them out, so the global batch is the same for every world
size, and resuming needs only ``s``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

from gkd_scale.errors import ConfigError
from gkd_scale.types import Int64Array


class Epochs:
    """Epoch after epoch of ``samples``; ``order(epoch)`` is that epoch's permutation of their indices."""

    def __init__(self, samples: int, order: Callable[[int], Int64Array]) -> None:
        assert samples > 0, "an order needs samples"
        self.samples = samples
        self._order = lru_cache(maxsize=2)(order)

    def position(self, p: int) -> tuple[int, int]:
        """Position ``p`` of the stream to (epoch, index of the sample)."""
        epoch, offset = divmod(p, self.samples)
        return epoch, int(self._order(epoch)[offset])


def positions(
    start: int, stop: int, *, micro: int, accumulation: int, rank: int, world: int
) -> Iterator[range]:
    """The positions of this rank's micro batches in the steps [start, stop), in order.

    In each of the ``accumulation`` micro steps of a step the ranks take ``micro`` positions in turn.
    """
    global_batch = micro * accumulation * world
    for step in range(start, stop):
        for index in range(accumulation):
            first = step * global_batch + (index * world + rank) * micro
            yield range(first, first + micro)


def check_batches(world: int, micro_batch: int, accumulation: int, global_batch: int) -> None:
    """ConfigError unless world x micro batch x accumulation is the global batch."""
    if min(world, micro_batch, accumulation) < 1 or world * micro_batch * accumulation != global_batch:
        raise ConfigError(
            f"global batch {global_batch} is not {world} ranks x micro batch {micro_batch} "
            f"x accumulation {accumulation}",
            "choose a global batch that the number of ranks divides",
        )
