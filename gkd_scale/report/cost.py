"""What a segmenter costs: parameters, arithmetic, bytes, and its speed on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from gkd_scale.segment.finished import FinishedSegmenter

_SECONDS = 1.0
"""How long a speed is measured, after a warm-up."""


@dataclass(frozen=True)
class Cost:
    """Of one image at the training size; ``bytes`` of float32 parameters, ``latency`` in ms at batch 1."""

    parameters: int
    gflops: float
    bytes: int
    latency: float
    images_per_s: float
    batch: int


@torch.no_grad()
def measure(model: FinishedSegmenter, batch: int = 8) -> Cost:
    """The cost of a segmenter on its device."""
    stride = model.module.stride
    height, width = (-(-side // stride) * stride for side in model.image_size)

    def pixels(images: int) -> torch.Tensor:
        return torch.zeros(images, 3, height, width, dtype=torch.uint8, device=model.device)

    with FlopCounterMode(display=False) as counter:
        model.module.logits(pixels(1))
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    one, many = (_seconds(model, pixels(images)) for images in (1, batch))
    return Cost(parameters, counter.get_total_flops() / 1e9, 4 * parameters, 1e3 * one, batch / many, batch)


def _seconds(model: FinishedSegmenter, pixels: torch.Tensor) -> float:
    """The time of one pass."""
    model.module.logits(pixels)
    began, passes = _now(model.device), 0
    while (spent := _now(model.device) - began) < _SECONDS or not passes:
        model.module.logits(pixels)
        passes += 1
    return spent / passes


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
