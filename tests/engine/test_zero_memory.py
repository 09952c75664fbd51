from __future__ import annotations

import pytest

from gkd_scale.engine.zero_memory import zero_memory


def test_each_stage_shards_more_and_more_gpus_take_less() -> None:
    one, eight = zero_memory(86_000_000, 2_000_000, 1), zero_memory(86_000_000, 2_000_000, 8)
    assert eight[0] == one[0] == 20 * 86e6
    assert eight[0] > eight[1] > eight[2] > eight[3]
    assert all(eight[stage] < one[stage] for stage in (1, 2, 3))
    assert one[2] == pytest.approx(20 * 86e6) and eight[3] == pytest.approx(4 * 2e6 + 18 * 86e6 / 8)


def test_offload_takes_masters_and_moments_away_and_then_parameters() -> None:
    inside = zero_memory(86_000_000, 2_000_000, 8)
    outside = zero_memory(86_000_000, 2_000_000, 8, offload=True)
    assert all(outside[stage] < inside[stage] for stage in (1, 2, 3))
    without = zero_memory(86_000_000, 2_000_000, 8, offload=True, offload_parameters=True)
    assert outside[3] - without[3] == 2 * 86e6 / 8
