from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.cache.order import Order, epoch_order

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
