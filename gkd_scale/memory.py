"""Memory of this process: freed blocks stay with it, and imports are not searched for garbage.

A forward pass allocates and frees blocks of megabytes. The C library hands each of them back to the
kernel and asks for it anew, and the kernel clears every page again: on a CPU that is up to half the time
of a forward pass (benchmarks/memory.md).

Python's collector of reference cycles walks all objects again each time that their number has grown by a
quarter. torch and DeepSpeed make millions of them while they are imported: a fifth of a start
(benchmarks/start_cost.md).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST_BLOCK = 1 << 30  # bytes


def keep_freed() -> bool:
    """Let the C library keep freed blocks of up to 1 GiB; False if it is not glibc.

    The process then holds the most memory that it ever used at once. Call it before the first batch.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Either setting alone makes it worse: it ends the C library's own adaptation.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def collector_paused(*, freeze: bool = False) -> Iterator[None]:
    """Search for no reference cycles within; for imports, and for calls that import.

    ``freeze``: what lives at the end is never searched again, as modules live as long as the process. That is
    for processes of our own: cycles that were dropped before would stay too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_enabled:
            gc.enable()
