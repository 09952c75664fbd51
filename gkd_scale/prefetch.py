"""Work in background threads: results ahead of time and in order, or jobs that nobody waits for.

Reading, CRC, JPEG decoding and resizing all release the GIL, so threads keep a device busy without
worker processes, shared memory or pickling. ``depth`` bounds how much is under way, so memory does not
grow with the length of the run.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

A = TypeVar("A")
R = TypeVar("R")


def prefetch(work: Callable[[A], R], items: Iterable[A], workers: int, depth: int) -> Iterator[R]:
    """``work(item)`` for each item, in order, up to ``depth`` ahead on ``workers`` threads.

    ``workers=0`` works inline. An exception of ``work`` is raised where its result is due.
    """
    if workers <= 0:
        yield from map(work, items)
        return
    pending: deque[Future[R]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        try:
            for item in source:
                pending.append(pool.submit(work, item))
                if len(pending) >= max(depth, 1):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class BackgroundJobs:
    """Background threads, by default a single one; ``submit`` blocks while ``depth`` jobs are queued.

    With a depth of 0 there is no thread: ``submit`` runs the job. Leaving the ``with`` block waits for all
    jobs, and raises what the first failed one raised.
    """

    def __init__(self, depth: int = 2, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="background")
        self._pending: deque[Future[Any]] = deque()
        self._depth = depth
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], Any]) -> None:
        """Queue ``job``; waits while the queue is full, and raises what an earlier job raised."""
        if self._depth == 0:
            job()
            return
        with self._lock:
            while len(self._pending) >= self._depth or (self._pending and self._pending[0].done()):
                self._pending.popleft().result()
            self._pending.append(self._pool.submit(job))

    def wait(self) -> None:
        """Wait for all jobs; raises what the first failed one raised."""
        with self._lock:
            while self._pending:
                self._pending.popleft().result()

    def __enter__(self) -> BackgroundJobs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._pending:
                future.result()
