"""Copies batches to the device, one ahead of the step that uses it.

A thread takes the batch after the current one, pins it and starts its copy on a separate stream, so that
copies run beside kernels; encoded tokens are decoded on that stream too. At most one batch waits on the
device. On a CPU there is nothing to copy. (Written for CUDA; no GPU has run it yet.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gkd_scale.cache.encoded import EncodedBatch


def feed(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """The same batches, their tensors on ``device``, in their stored dtype."""
    return batches if device.type != "cuda" else _copied_ahead(batches, device)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``change`` applied to each tensor in tuples, named tuples, lists, dicts, dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: map_tensors(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **changed)
    return value


def _copied_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    stream = torch.cuda.Stream(device)
    end = object()

    def copy() -> tuple[Any, torch.cuda.Event]:
        batch = next(batches, end)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            moved = map_tensors(batch, lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
            moved = moved.decoded() if isinstance(moved, EncodedBatch) else moved
            done = torch.cuda.Event()
            done.record(stream)
        return moved, done

    def used_here(tensor: Tensor) -> Tensor:
        tensor.record_stream(torch.cuda.current_stream(device))
        return tensor

    with ThreadPoolExecutor(1, thread_name_prefix="copy") as pool:
        ahead = pool.submit(copy)
        while True:
            batch, done = ahead.result()
            if batch is end:
                return
            ahead = pool.submit(copy)
            torch.cuda.current_stream(device).wait_event(done)
            yield map_tensors(batch, used_here)
