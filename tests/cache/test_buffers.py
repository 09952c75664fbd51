from __future__ import annotations

import gc

import torch

from gkd_scale.cache.buffers import Buffers


def test_memory_is_used_again_when_the_last_view_of_it_dies() -> None:
    buffers = Buffers(keep=2, pin=False)
    one = buffers.take((4, 3), torch.float16)
    place, row = one.data_ptr(), one[2]
    del one
    gc.collect()
    other = buffers.take((4, 3), torch.float16)
    assert other.data_ptr() != place, "a row is still held"
    del row
    gc.collect()
    assert buffers.take((4, 3), torch.float16).data_ptr() == place
    assert buffers.take((4, 3), torch.uint8).dtype == torch.uint8


def test_only_so_many_are_kept() -> None:
    buffers = Buffers(keep=2, pin=False)
    held = [buffers.take((1000,), torch.uint8) for _ in range(5)]
    places = {tensor.data_ptr() for tensor in held}
    assert len(places) == 5
    held.clear()
    gc.collect()
    assert sum(len(free) for free in buffers._free.values()) == 2
