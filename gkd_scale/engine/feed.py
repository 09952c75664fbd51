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
    return batches if device.type != "cuda" else _copy_ahead(batches, device)


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
        changes = {field.name: map_tensors(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **changes)
    return value


def _copy_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    stream = torch.cuda.Stream(device)
    end = object()

    def copy() -> tuple[Any, torch.cuda.Event]:
        batch = next(batches, end)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            gpu_batch = map_tensors(batch, lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
            gpu_batch = gpu_batch.decode() if isinstance(gpu_batch, EncodedBatch) else gpu_batch
            event = torch.cuda.Event()
            event.record(stream)
        return gpu_batch, event

    def record_use(tensor: Tensor) -> Tensor:
        tensor.record_stream(torch.cuda.current_stream(device))
        return tensor

    with ThreadPoolExecutor(1, thread_name_prefix="copy") as pool:
        future = pool.submit(copy)
        while True:
            batch, event = future.result()
            if batch is end:
                return
            future = pool.submit(copy)
            torch.cuda.current_stream(device).wait_event(event)
            yield map_tensors(batch, record_use)
