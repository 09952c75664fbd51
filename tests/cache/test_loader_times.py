"""Why batches are late."""

from __future__ import annotations

import pytest

from gkd_scale.cache.loader_times import LoaderTimes


@pytest.mark.parametrize(
    ("kind", "workers", "message"),
    [
        ("disk", 2, "the disk takes 90%"),
        ("decode", 2, "there are 2 workers on 4 cores; give --workers 4"),
        ("decode", 4, "decoding takes 90% of the loader's time on all 4 cores"),
        ("teacher", 2, "the live teacher takes 90%"),
    ],
)
def test_the_cause_is_what_took_longest(kind: str, workers: int, message: str) -> None:
    times = LoaderTimes(workers)
    times.seconds = dict.fromkeys(times.seconds, 0.5) | {kind: 9.0}
    assert message in times.cause(cores=4)


def test_time_is_added_up() -> None:
    times = LoaderTimes(1)
    for _ in range(2):
        with times.timer("teacher"):
            pass
        with times.read_timer():
            sum(range(10_000))
    assert times.seconds["teacher"] > 0 and times.seconds["decode"] > 0
