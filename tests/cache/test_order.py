from __future__ import annotations

import time
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.cache.order import WINDOW, Order
from gkd_scale.randomness import generator

sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda values: sum(values) > 0)
seeds = st.integers(0, 2**31)


def epoch_order(shard_sizes: list[int], seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """The samples of one epoch, position by position."""
    order = Order(shard_sizes, seed, window)
    first = epoch * order.samples
    return np.array([order.position(first + offset)[1] for offset in range(order.samples)])


def whole_epoch(shard_sizes: list[int], seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """The order as it was first written, the whole epoch at once: runs and caches rely on it."""
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else sizes
    shards = generator("order.shards", seed, epoch).permutation(len(sizes))
    parts = []
    for number, first in enumerate(range(0, len(shards), max(window, 1))):
        together = [
            np.arange(starts[s], starts[s] + sizes[s]) for s in shards[first : first + max(window, 1)]
        ]
        parts.append(generator("order.samples", seed, epoch, number).permutation(np.concatenate(together)))
    return np.concatenate(parts)


@given(sizes, seeds, st.integers(0, 50), st.integers(0, 6))
def test_windows_give_the_order_of_whole_epochs(
    shard_sizes: list[int], seed: int, epoch: int, window: int
) -> None:
    expected = whole_epoch(shard_sizes, seed, epoch, window)
    assert epoch_order(shard_sizes, seed, epoch, window).tolist() == expected.tolist()


@given(sizes, seeds, st.lists(st.integers(0, 10**6), max_size=20))
def test_a_position_does_not_depend_on_those_before_it(
    shard_sizes: list[int], seed: int, positions: list[int]
) -> None:
    order = Order(shard_sizes, seed)
    for p in positions:
        epoch, offset = divmod(p, order.samples)
        assert order.position(p) == (epoch, whole_epoch(shard_sizes, seed, epoch)[offset])


def test_a_billion_samples_cost_a_window() -> None:
    """Three positions of 10^9 samples in 10^6 shards: tens of megabytes, and no work a sample."""
    tracemalloc.start()
    start = time.process_time()
    order = Order(np.full(10**6, 1000), 0)
    places = [order.position(p) for p in (0, 10**9 - 1, 10**9)]
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [epoch for epoch, _ in places] == [0, 0, 1] and all(0 <= index < 10**9 for _, index in places)
    assert peak < 100e6, f"{peak / 1e6:.0f} MB"
    assert seconds < 5, f"{seconds:.1f} s"


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
    shards = owner[epoch_order(shard_sizes, seed, 0, window)]
    spans = [np.flatnonzero(shards == shard) for shard in range(len(shard_sizes))]
    together = sum(sorted(shard_sizes)[-window:])
    assert all(span.max() - span.min() < together for span in spans)


def test_samples_of_a_window_are_mixed() -> None:
    shards = np.repeat(np.arange(8), 50)[epoch_order([50] * 8, 0, 0, window=4)]
    changes = int((np.diff(shards) != 0).sum())
    assert changes > 200, "neighbours come from different shards most of the time"


@given(sizes, seeds)
@settings(max_examples=30)
def test_the_stream_uses_each_sample_once_an_epoch(shard_sizes: list[int], seed: int) -> None:
    order = Order(shard_sizes, seed)
    stream = [order.position(p) for p in range(3 * order.samples)]
    for epoch in range(3):
        samples = [sample for of_epoch, sample in stream if of_epoch == epoch]
        assert sorted(samples) == list(range(order.samples))
