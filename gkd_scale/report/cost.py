"""What a segmenter and its teacher cost: parameters, arithmetic, bytes, and speed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gkd_scale.segment.finished import FinishedSegmenter
from gkd_scale.types import LiveTeacher, Size

_SECONDS = 1.0
"""How long a speed is measured, after a warm-up."""


@dataclass(frozen=True)
class ModelCost:
    """Of one image; ``bytes`` of float32 parameters, ``latency`` in ms at batch 1, speed in ``batch``es."""

    parameters: int
    gflops: float
    bytes: int
    latency: float
    images_per_s: float
    batch: int


@torch.no_grad()
def measure(
    parameters: int, forward: Callable[[Tensor], object], size: Size, device: torch.device, batch: int = 8
) -> ModelCost:
    """The cost of ``forward``, with so many ``parameters``, on pixels (B, 3, *size) uint8 on ``device``."""

    def pixels(images: int) -> Tensor:
        return torch.zeros(images, 3, *size, dtype=torch.uint8, device=device)

    with FlopCounterMode(display=False) as counter:
        forward(pixels(1))
    one, many = (_seconds(forward, pixels(images)) for images in (1, batch))
    return ModelCost(
        parameters, counter.get_total_flops() / 1e9, 4 * parameters, 1e3 * one, batch / many, batch
    )


def of_segmenter(model: FinishedSegmenter) -> ModelCost:
    """The cost of a backbone and its head at the training size."""
    stride = model.module.stride
    height, width = (-(-side // stride) * stride for side in model.image_size)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    return measure(parameters, model.module.logits, (height, width), model.device)


def of_teacher(teacher: LiveTeacher) -> ModelCost:
    """The cost of a teacher at the cache's image size and in the cache's arithmetic."""
    return measure(teacher.parameters, teacher.features, teacher.image_size, teacher.device)


def _seconds(forward: Callable[[Tensor], object], pixels: Tensor) -> float:
    """The time of one pass."""
    forward(pixels)
    began, passes = _now(pixels.device), 0
    while (seconds := _now(pixels.device) - began) < _SECONDS or not passes:
        forward(pixels)
        passes += 1
    return seconds / passes


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
