"""Work ahead in threads, hand over in order.

Reading, CRC, JPEG decoding and resizing all release the GIL, so threads keep a device busy without
worker processes, shared memory or pickling. ``depth`` bounds how far ahead the work runs, so memory
does not grow with the length of the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
