"""The stream of positions: ranks and micro batches share each step out, epochs use each sample once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.errors import ConfigError
from gkd_scale.order import Epochs, check_batches, positions


@given(st.integers(1, 9), st.integers(0, 40))
def test_a_position_is_a_place_in_its_epoch(samples: int, p: int) -> None:
    numbers: list[int] = []

    def order(epoch: int) -> np.ndarray:
        numbers.append(epoch)
        return np.roll(np.arange(samples), epoch)

    epochs = Epochs(samples, order)
    assert epochs.position(p) == epochs.position(p) == (p // samples, (p % samples - p // samples) % samples)
    assert numbers == [p // samples], "the order of an epoch is computed once"


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.integers(1, 4))
def test_ranks_share_each_step_without_overlap_or_gap(
    micro: int, accumulation: int, world: int, start: int, steps: int
) -> None:
    shares = [
        list(part)
        for rank in range(world)
        for part in positions(
            start, start + steps, micro=micro, accumulation=accumulation, rank=rank, world=world
        )
    ]
    assert all(len(part) == micro for part in shares)
    batch = micro * accumulation * world
    assert sorted(p for part in shares for p in part) == list(range(start * batch, (start + steps) * batch))


@given(
    st.integers(0, 1000),
    st.sampled_from(
        [(1, 12, 1), (1, 3, 4), (2, 6, 1), (2, 3, 2), (3, 4, 1), (4, 3, 1), (6, 1, 2), (12, 1, 1)]
    ),
)
def test_the_global_batch_does_not_depend_on_the_world(step: int, shape: tuple[int, int, int]) -> None:
    world, micro, accumulation = shape
    shares = [
        p
        for rank in range(world)
        for part in positions(step, step + 1, micro=micro, accumulation=accumulation, rank=rank, world=world)
        for p in part
    ]
    assert sorted(shares) == list(range(step * 12, step * 12 + 12))


def test_a_global_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="global batch 10 is not 3 ranks x micro batch 3 x accumulation 1"):
        check_batches(3, 3, 1, 10)


def test_ranks_take_turns_within_a_micro_step() -> None:
    """Micro step by micro step, then rank by rank: the canonical order of a global batch."""
    shares = [list(positions(5, 6, micro=3, accumulation=2, rank=rank, world=2)) for rank in range(2)]
    assert shares == [[range(60, 63), range(66, 69)], [range(63, 66), range(69, 72)]]
