"""A tiny deterministic teacher (a real implementation of ``Teacher``) and folders of real images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.views import decode
from gkd_scale.types import Features, UInt8Array

SIZE = (32, 48)
PATCH = 8


class TinyTeacher:
    """Patch means through a fixed random projection; ``fail_at`` raises at that batch."""

    def __init__(self, *, dim: int = 12, gain: float = 1.0, fail_at: int | None = None) -> None:
        self.dim, self.gain, self.fail_at = dim, gain, fail_at
        self.image_size = SIZE
        self.grid = (SIZE[0] // PATCH, SIZE[1] // PATCH)
        self.calls = 0
        self._weight = torch.randn(3, dim, generator=torch.Generator().manual_seed(0))

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "tiny", "gain": self.gain, "patch": PATCH}

    def __call__(self, pixels: Tensor) -> Features:
        if self.calls == self.fail_at:
            raise RuntimeError("the teacher broke")
        self.calls += 1
        means = torch.nn.functional.avg_pool2d(pixels.float() / 255, PATCH)
        patches = self.gain * means.flatten(2).transpose(1, 2) @ self._weight
        return Features(patches.mean(dim=1), patches)


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    """``count`` smooth random images of several sizes, in two sub-folders and three formats."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((60 + 7 * i % 40, 50 + 5 * i % 30), Image.Resampling.BICUBIC)
        path = folder / ("b" if i % 3 else "a/deep") / f"{i:03d}{('.jpg', '.PNG', '.webp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def image_of(jpeg: bytes) -> UInt8Array:
    """The pixels (H, W, 3) of a stored view."""
    return decode(jpeg).transpose(1, 2, 0)


def config(images: Path, out: Path, **changes: Any) -> CacheTeacherConfig:
    """Small shards and batches, so that few images make many of both."""
    values: dict[str, Any] = {"samples_per_shard": 4, "batch_size": 3, "workers": 2, "views": 2}
    return CacheTeacherConfig(
        images=images, image_size=f"{SIZE[0]}x{SIZE[1]}", out=out, **{**values, **changes}
    )


def tree(folder: Path) -> dict[str, str]:
    """``{relative path: SHA-256}`` of all files below ``folder``."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
