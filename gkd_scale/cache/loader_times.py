"""How the threads that make batches spend their time: what to change if training waits for data."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gkd_scale.cache.config import default_workers


class LoaderTimes:
    """Seconds of all threads together, by kind: ``disk``, ``decode``, ``teacher``."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.seconds = {"disk": 0.0, "decode": 0.0, "teacher": 0.0}
        self._lock = threading.Lock()

    @contextmanager
    def read_timer(self) -> Iterator[None]:
        """Time a block that reads and computes: all seconds but the thread's CPU time count as ``disk``."""
        wall, busy = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            cpu = time.thread_time() - busy
            self._add("disk", max(0.0, time.perf_counter() - wall - cpu))
            self._add("decode", cpu)

    @contextmanager
    def timer(self, kind: str) -> Iterator[None]:
        """Time a block of one kind."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(kind, time.perf_counter() - start)

    def cause(self, cores: int | None = None) -> str:
        """Why batches are late, and what helps, in one line; ``cores`` default to this process's."""
        cores = default_workers() if cores is None else cores
        total = sum(self.seconds.values()) or 1.0
        kind = max(self.seconds, key=lambda name: self.seconds[name])
        share = f"{self.seconds[kind] / total:.0%} of the loader's time"
        if kind == "teacher":
            return f"the live teacher takes {share}; cache its tokens with gkd-scale cache-teacher"
        if kind == "disk":
            return f"the disk takes {share}; put the cache on a faster one, or choose a smaller --codec"
        if self.workers < cores:
            return (
                f"decoding takes {share} and there are {self.workers} workers on {cores} cores; "
                f"give --workers {cores}"
            )
        return (
            f"decoding takes {share} on all {cores} cores; use smaller views, a cheaper codec or more cores"
        )

    def _add(self, kind: str, seconds: float) -> None:
        with self._lock:
            self.seconds[kind] += seconds
