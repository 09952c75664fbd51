from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.cache.order import Order, epoch_order, micro_positions
from gkd_scale.errors import ConfigError

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda values: sum(values) > 0)
seeds = st.integers(0, 2**31)


@given(sizes, seeds, st.integers(0, 50), st.integers(1, 6))
def test_an_epoch_is_a_permutation(shard_sizes: list[int], seed: int, epoch: int, window: int) -> None:
    order = epoch_order(shard_sizes, seed, epoch, window)
    assert sorted(order.tolist()) == list(range(sum(shard_sizes)))
    assert order.tolist() == epoch_order(shard_sizes, seed, epoch, window).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order([20, 20], seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), seeds, st.integers(1, 6))
def test_reads_stay_within_a_window_of_shards(shard_sizes: list[int], seed: int, window: int) -> None:
    owner = np.repeat(np.arange(len(shard_sizes)), shard_sizes)
    visited = owner[epoch_order(shard_sizes, seed, 0, window)]
    spans = [np.flatnonzero(visited == shard) for shard in range(len(shard_sizes))]
    together = sum(sorted(shard_sizes)[-window:])
    assert all(span.max() - span.min() < together for span in spans)


def test_samples_of_a_window_are_mixed() -> None:
    visited = np.repeat(np.arange(8), 50)[epoch_order([50] * 8, 0, 0, window=4)]
    changes = int((np.diff(visited) != 0).sum())
    assert changes > 200, "neighbours come from different shards most of the time"


@given(sizes, seeds)
@settings(max_examples=30)
def test_the_stream_uses_each_sample_once_an_epoch(shard_sizes: list[int], seed: int) -> None:
    order = Order(shard_sizes, seed)
    stream = [order.position(p) for p in range(3 * order.samples)]
    for epoch in range(3):
        used = [sample for of_epoch, sample in stream if of_epoch == epoch]
        assert sorted(used) == list(range(order.samples))


@given(
    st.integers(0, 1000),
    st.sampled_from(
        [(1, 12, 1), (1, 3, 4), (2, 6, 1), (2, 3, 2), (3, 4, 1), (4, 3, 1), (6, 1, 2), (12, 1, 1)]
    ),
)
def test_the_global_batch_does_not_depend_on_the_world(step: int, shape: tuple[int, int, int]) -> None:
    world, micro, accumulation = shape
    positions = [
        p
        for rank in range(world)
        for a in range(accumulation)
        for p in micro_positions(step, a, rank, world, micro, accumulation, 12)
    ]
    assert sorted(positions) == list(range(step * 12, step * 12 + 12))


def test_a_global_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="global batch 10 is not 3 ranks x micro batch 3 x accumulation 1"):
        micro_positions(0, 0, 0, 3, 3, 1, 10)


def test_ranks_take_turns_within_a_micro_step() -> None:
    """Micro step by micro step, then rank by rank: the canonical order of a global batch."""
    taken = [[micro_positions(5, a, rank, 2, 3, 2, 12) for rank in range(2)] for a in range(2)]
    assert taken == [[range(60, 63), range(63, 66)], [range(66, 69), range(69, 72)]]
