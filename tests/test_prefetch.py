"""Prefetching keeps order, bounds work ahead, and raises where a result is due; so do background jobs."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.prefetch import BackgroundJobs, prefetch


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers()), st.integers(0, 4), st.integers(0, 6))
def test_order_is_kept_for_every_number_of_workers(items: list[int], workers: int, depth: int) -> None:
    assert list(prefetch(lambda item: item * 2, items, workers, depth)) == [item * 2 for item in items]


def test_work_ahead_is_bounded() -> None:
    items = []

    def work(item: int) -> int:
        items.append(item)
        return item

    results = prefetch(work, iter(range(1000)), workers=2, depth=4)
    for expected in range(10):
        assert next(results) == expected
    time.sleep(0.05)
    assert len(items) <= 10 + 4
    results.close()  # type: ignore[attr-defined]


def test_an_error_is_raised_in_its_place() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = prefetch(work, range(6), workers=2, depth=3)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    results = prefetch(lambda item: item, range(100), workers=3, depth=8)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("depth", [1, 2])
def test_submit_blocks_while_depth_jobs_are_queued(depth: int) -> None:
    release, submissions = threading.Event(), threading.Semaphore(0)

    def submit_all() -> None:
        with BackgroundJobs(depth) as jobs:
            for _ in range(depth + 1):
                jobs.submit(release.wait)
                submissions.release()

    caller = threading.Thread(target=submit_all)
    caller.start()
    assert all(submissions.acquire(timeout=20) for _ in range(depth))
    assert not submissions.acquire(timeout=0.1)
    release.set()
    caller.join(timeout=20)
    assert submissions.acquire(timeout=20)


def test_without_depth_a_job_runs_at_once_in_the_callers_thread() -> None:
    threads: list[int] = []
    with BackgroundJobs(depth=0) as jobs:
        jobs.submit(lambda: threads.append(threading.get_ident()))
        assert threads == [threading.get_ident()]


def test_jobs_run_in_order_and_the_first_error_comes_back() -> None:
    numbers: list[int] = []
    with BackgroundJobs(depth=3) as jobs:
        for number in range(20):
            jobs.submit(lambda number=number: numbers.append(number))
    assert numbers == list(range(20))

    def fail() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"), BackgroundJobs() as jobs:
        jobs.submit(fail)
        for _ in range(5):
            jobs.submit(lambda: None)
    with pytest.raises(ValueError, match="first"), BackgroundJobs() as jobs:
        jobs.submit(fail)
