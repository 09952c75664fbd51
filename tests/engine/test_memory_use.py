from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gkd_scale.engine.memory_use import MemoryUse, memory_use

CPU = torch.device("cpu")


class Powers(nn.Module):
    """``n`` squares of the input, each of which autograd keeps until its backward pass."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.scale = n, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for _ in range(self.n):
            x = x**2
        return x.sum()


def use(module: nn.Module, x: Tensor) -> MemoryUse:
    def step() -> None:
        module.zero_grad()
        module(x).backward()

    step()
    return memory_use(step, [module], CPU)


@pytest.mark.parametrize("size", [1 << 18, 1 << 20])
def test_what_autograd_keeps_is_counted_by_the_byte(size: int) -> None:
    """The input of each square is kept; the first is the product, and that needs x, which is held anyway."""
    memory = use(Powers(5), torch.ones(size))
    assert memory.working - 5 * 4 * size in range(-100, 1000)
    assert memory.resting >= 4 * size


def test_a_tensor_that_many_operations_keep_counts_once() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            product = x * self.scale
            return sum((product**power).sum() for power in (2, 3, 4, 5))  # type: ignore[return-value]

    size = 1 << 20
    assert use(Same(), torch.ones(size)).working - 4 * size in range(-100, 1000)


def test_parameters_are_no_activations_and_gradients_count() -> None:
    linear = nn.Linear(1024, 1024, bias=False)
    x = torch.ones(2, 1024)

    def step() -> None:
        linear.weight.grad = None
        linear(x).sum().backward()

    step()
    linear.weight.grad = None
    assert memory_use(step, [linear], CPU).working < 100_000, "one look, before the first gradient"
    step()
    before = memory_use(lambda: None, [linear], CPU).resting
    linear.weight.grad = None
    assert before - memory_use(lambda: None, [linear], CPU).resting == 4 * 1024**2
