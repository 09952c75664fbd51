"""How much memory training takes on this device: between steps, and beside that during a micro batch.

On a GPU, PyTorch's allocator counts. On a CPU, this module adds up the bytes of all tensors of the process:
after a step, and a few times in the backward pass, together with what autograd still keeps for it. It misses
temporary tensors inside a kernel's call, and counts offloaded parts as if they were on the GPU.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOOKS = 8
"""How often the tensors are added up in a backward pass."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes: ``resting`` between steps; ``working``, more than that at the peak of a micro batch."""

    resting: int
    working: int


def memory_use(step: Callable[[], object], modules: Iterable[nn.Module], device: torch.device) -> MemoryUse:
    """The memory of ``step()``, which must have run once before; it trains ``modules`` on ``device``."""
    if device.type == "cuda":
        resting = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return MemoryUse(resting, torch.cuda.max_memory_allocated(device) - resting)
    resting = sum(_storages(_tensors()).values())
    hooks = _SavedTensors(list(modules))
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        step()
    return MemoryUse(resting, max(0, hooks.peak - resting))


class _SavedTensors:
    """Hooks on what autograd saves. ``peak``: the most bytes of all tensors in the backward passes.

    The tensors are added up at :data:`LOOKS` moments of each backward pass: activations go while gradients
    and DeepSpeed's buckets for them come.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.peak = 0
        self._parameters = [p for module in modules for p in module.parameters()]
        self._sizes: dict[int, int] = {}
        self._uses: Counter[int] = Counter()
        self._packs = self._unpacks = 0

    def pack(self, tensor: Tensor) -> Tensor:
        if self._unpacks:  # the forward pass of another micro batch
            self._uses, self._packs, self._unpacks = Counter(), 0, 0
        self._packs += 1
        parameters = _storages(p.data for p in self._parameters)  # ZeRO 3 frees them after their layer
        for address, size in _storages([tensor]).items():
            if address not in parameters:
                self._sizes[address] = size
                self._uses[address] += 1
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        if self._unpacks % max(1, self._packs // LOOKS) == 0:
            storages = _storages(_tensors())
            size = sum(self._sizes[address] for address in +self._uses if address not in storages)
            self.peak = max(self.peak, sum(storages.values()) + size)
        self._unpacks += 1
        self._uses.subtract(_storages([tensor]).keys())
        return tensor


def _tensors() -> list[Tensor]:
    """The tensors that Python holds, and their gradients."""
    tensors = [tensor for tensor in gc.get_objects() if issubclass(type(tensor), Tensor)]
    return tensors + [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The bytes of each storage behind ``tensors``, by its address."""
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.device.type != "meta"}
