"""How much memory training takes on this device: between steps, and beside that during a micro batch.

On a GPU the allocator of PyTorch says so. On a CPU the bytes of all tensors of this process are added up:
after a step, and a few times in the backward pass, together with what autograd still keeps for it. Temporary
tensors inside a kernel's call are not seen there, and offloaded parts count as if they were on the GPU.
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
    """Bytes: ``held`` between steps; ``working``, more than that at the peak of a micro batch."""

    held: int
    working: int


def memory_use(step: Callable[[], object], modules: Iterable[nn.Module], device: torch.device) -> MemoryUse:
    """The memory of ``step()``, which must have run once before; it trains ``modules`` on ``device``."""
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return MemoryUse(held, torch.cuda.max_memory_allocated(device) - held)
    held = sum(_storages(_tensors()).values())
    saved = _Saved(list(modules))
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        step()
    return MemoryUse(held, max(0, saved.peak - held))


class _Saved:
    """Hooks on what autograd saves. ``peak``: the most bytes of all tensors in the backward passes.

    The tensors are added up at :data:`LOOKS` moments of each backward pass: activations go while gradients
    and DeepSpeed's buckets for them come.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.peak = 0
        self._parameters = [p for module in modules for p in module.parameters()]
        self._sizes: dict[int, int] = {}
        self._uses: Counter[int] = Counter()
        self._saved = self._used = 0

    def pack(self, tensor: Tensor) -> Tensor:
        if self._used:  # the forward pass of another micro batch
            self._uses, self._saved, self._used = Counter(), 0, 0
        self._saved += 1
        gathered = _storages(p.data for p in self._parameters)  # ZeRO 3 frees them after their layer
        for place, size in _storages([tensor]).items():
            if place not in gathered:
                self._sizes[place] = size
                self._uses[place] += 1
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        if self._used % max(1, self._saved // LOOKS) == 0:
            seen = _storages(_tensors())
            kept = sum(self._sizes[place] for place in +self._uses if place not in seen)
            self.peak = max(self.peak, sum(seen.values()) + kept)
        self._used += 1
        self._uses.subtract(_storages([tensor]).keys())
        return tensor


def _tensors() -> list[Tensor]:
    """The tensors that Python holds, and their gradients."""
    found = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
    return found + [each.grad for each in found if each.is_leaf and each.grad is not None]


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The bytes of each storage behind ``tensors``, by its address."""
    real = [each.untyped_storage() for each in tensors if each.layout is torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in real if storage.device.type != "meta"}
