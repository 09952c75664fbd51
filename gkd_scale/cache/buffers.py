"""Room for batches that is used again.

Fresh memory costs a page fault and a zeroed page for each page that a batch touches: as much as the copy from
the page cache itself. A buffer goes back to its pool when the last tensor on it dies, and not before, so that
a batch belongs to whoever holds it, for as long as they like.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from gkd_scale.cache.codec import Array

_KINDS = {torch.uint8: np.uint8, torch.float16: np.float16}


class Buffers:
    """Uninitialised tensors, pinned or not; at most ``keep`` free ones of a shape stay. Safe for threads."""

    def __init__(self, keep: int, pin: bool) -> None:
        self._keep, self._pin = keep, pin
        self._free: dict[tuple[tuple[int, ...], torch.dtype], deque[Array]] = {}

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that nobody else holds; ``dtype`` is uint8 or float16."""
        if self._pin:  # PyTorch itself uses pinned memory again, once copies from it are done
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        free = self._free.setdefault((shape, dtype), deque(maxlen=self._keep))
        try:
            owner = free.pop()
        except IndexError:
            owner = np.empty(shape, _KINDS[dtype])
        lent = owner[...]  # a view, which the tensors on it keep alive
        weakref.finalize(lent, free.append, owner).atexit = False
        return torch.from_numpy(lent)
