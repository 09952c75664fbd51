"""Colour jitter that only the student sees: the teacher's features stay those of the stored pixels.

The published method shows student and teacher the same pixels. Here the student is asked for the teacher's
features of the undisturbed image, which teaches it to look through changes of light.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gkd_scale.randomness import generator

_LUMA = (0.299, 0.587, 0.114)


def jitter_factors(sids: Sequence[str], epochs: Sequence[int], strength: float, seed: int) -> Tensor:
    """(B, 3) float32: each image's factors of brightness, contrast and saturation.

    Each is uniform in [1 - strength, 1 + strength], a pure function of (seed, epoch, sid).
    """
    factors = [
        generator("student.jitter", seed, epoch, sid).uniform(1 - strength, 1 + strength, 3)
        for sid, epoch in zip(sids, epochs, strict=True)
    ]
    return torch.from_numpy(np.stack(factors)).float()


def jitter(pixels: Tensor, factors: Tensor) -> Tensor:
    """``pixels`` (B, 3, H, W) 0..255 to float32 of the same range, changed by ``factors`` (B, 3).

    Brightness scales the pixels, contrast their distance from the image's mean grey, saturation their
    distance from their own grey.
    """
    brightness, contrast, saturation = (factors[:, i].view(-1, 1, 1, 1) for i in range(3))
    out = (pixels.float() * brightness).clamp(0, 255)
    luma = torch.tensor(_LUMA, device=pixels.device).view(1, 3, 1, 1)
    grey = (out * luma).sum(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    out = (mean + contrast * (out - mean)).clamp(0, 255)
    grey = (out * luma).sum(1, keepdim=True)
    return (grey + saturation * (out - grey)).clamp(0, 255)
