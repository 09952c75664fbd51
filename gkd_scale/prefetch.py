"""Work ahead in threads, hand over in order; and work behind in one thread.

Reading, CRC, JPEG decoding and resizing all release the GIL, so threads keep a device busy without
worker processes, shared memory or pickling. ``depth`` bounds how far ahead the work runs, so memory
does not grow with the length of the run.
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


class Behind:
    """Threads (or one) that work behind their callers, at most ``depth`` jobs late. Errors come back."""

    def __init__(self, depth: int = 2, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="behind")
        self._pending: deque[Future[Any]] = deque()
        self._depth = depth
        self._lock = threading.Lock()

    def submit(self, job: Callable[[], Any]) -> None:
        """Queue ``job``; waits while the queue is full, and raises what an earlier job raised."""
        with self._lock:
            while len(self._pending) >= self._depth or (self._pending and self._pending[0].done()):
                self._pending.popleft().result()
            self._pending.append(self._pool.submit(job))

    def drain(self) -> None:
        """Wait until all that was queued has run or failed."""
        self._pool.shutdown(wait=True)

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.drain()
        if kind is None:
            for future in self._pending:
                future.result()
