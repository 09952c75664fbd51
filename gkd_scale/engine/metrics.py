"""The metrics of steps: they stay on the device, and are reduced over ranks and fetched together.

To read a number from a GPU the host waits until the GPU has computed it. A loop that reads its losses in
every step cannot enqueue the next one meanwhile. So a window of several steps is read at once, with one
reduction, which carries the request to stop too. On a CPU a window is one step: nothing waits there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gkd_scale.engine.runtime import Runtime

STEPS_ON_CUDA = 10
"""Steps of a window on a GPU."""


class StepRow(NamedTuple):
    """One model at one step: its ``losses``, means over the global batch, and ``facts`` about the step."""

    losses: dict[str, float]
    facts: dict[str, float]


class StepResult(NamedTuple):
    """One model after one step: ``sums`` of its losses over this rank's micro batches, scalars by name; its
    learning rate; the norm of its gradients, which is the same on every rank."""

    sums: Mapping[str, Tensor]
    lr: float
    grad_norm: Tensor | float


def steps_of_window(device: torch.device) -> int:
    """How many steps a window has on ``device``."""
    return STEPS_ON_CUDA if device.type == "cuda" else 1


class Window:
    """The steps since metrics were last fetched, of all models that share a pass."""

    def __init__(self, runtime: Runtime, images: int, accumulation: int) -> None:
        self._runtime, self._images = runtime, images
        self._count = runtime.world * accumulation
        self._steps: list[Sequence[StepResult]] = []
        self._began, self._wait = 0.0, 0.0
        self.pace = (0.0, 0.0)
        """Seconds that a step waited for data, and took, in the window that was fetched last."""

    def begin_step(self) -> None:
        """A step begins; the first one of a window starts its clock."""
        if not self._steps:
            self._began, self._wait = time.perf_counter(), 0.0

    def end_step(self, models: Sequence[StepResult], wait: float) -> None:
        """Keep the step's metrics of every model, and the seconds that it waited for data."""
        self._steps.append(models)
        self._wait += wait

    def fetch(self, stop_requested: bool) -> tuple[list[list[StepRow]], bool]:
        """The rows of each step, one a model, and whether any rank has a request to stop. Collective.

        All micro batches have one size. The next step begins a new window.
        """
        models = [model for step in self._steps for model in step]
        sums = [value for model in models for value in model.sums.values()]
        flag = torch.full_like(sums[0], stop_requested)
        *totals, requests = self._runtime.sum(torch.stack([*sums, flag])).tolist()
        means, norms = iter(totals), iter(_floats([model.grad_norm for model in models]))
        seconds, count = time.perf_counter() - self._began, len(self._steps)
        pace = {
            "images_per_s": round(self._images * count / seconds, 2),
            "data_wait": round(self._wait / seconds, 4),
        }
        rows = [
            StepRow(
                {name: next(means) / self._count for name in model.sums},
                {"lr": model.lr, "grad_norm": next(norms), **pace},
            )
            for model in models
        ]
        per_step = len(self._steps[0])
        self.pace = (self._wait / count, seconds / count)
        self._steps = []
        return [rows[first : first + per_step] for first in range(0, len(rows), per_step)], requests > 0


def _floats(values: Sequence[Tensor | float]) -> list[float]:
    """Numbers, those on a device fetched together."""
    tensors = [value.double() for value in values if isinstance(value, Tensor)]
    numbers = iter(torch.stack([t.to(tensors[0].device) for t in tensors]).tolist() if tensors else ())
    return [next(numbers) if isinstance(value, Tensor) else float(value) for value in values]
