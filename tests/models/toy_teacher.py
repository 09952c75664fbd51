"""A teacher of another library: what a third party writes to add one, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gkd_scale.models.config import TeacherConfig
from gkd_scale.types import Features, Size

PATCH = 8


class ToyTeacher:
    """Colours of patches and of quarters of patches, through a fixed random projection."""

    def __init__(self, config: TeacherConfig, image_size: Size, device: str) -> None:
        self.name, self.image_size, self.dim, self.parameters = str(config.name), image_size, 12, 36
        self.device = torch.device("cpu" if device == "auto" else device)
        self.grid = (image_size[0] // PATCH, image_size[1] // PATCH)
        self._gain = float(config.args.get("gain", 1))
        self._weight = torch.randn(3, self.dim, generator=torch.Generator().manual_seed(0))

    def fingerprint(self) -> dict[str, Any]:
        return {"model": self.name, "args": {"gain": self._gain}, "weights_sha256": "toy"}

    def __call__(self, pixels: Tensor) -> Features:
        return self.features(pixels)

    def features(self, pixels: Tensor) -> Features:
        patches = self.every_level(pixels)[-1].flatten(2).transpose(1, 2)
        return Features(patches.mean(1), patches)

    def levels(self, pixels: Tensor, indices: Sequence[int]) -> list[Tensor]:
        every = self.every_level(pixels)[:-1]
        return [every[index] for index in indices]

    def level_widths(self, indices: Sequence[int]) -> list[int]:
        return [self.dim for _ in indices]

    def every_level(self, pixels: Tensor) -> list[Tensor]:
        colours = F.avg_pool2d(pixels.float() / 255, PATCH)
        level = self._gain * torch.einsum("bchw,cd->bdhw", colours, self._weight)
        return [level, 2 * level, 3 * level]


def load(config: TeacherConfig, image_size: Size, device: str) -> ToyTeacher:
    return ToyTeacher(config, image_size, device)
