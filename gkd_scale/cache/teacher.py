"""One batch through the teacher, its shapes checked."""

from __future__ import annotations

import torch

from gkd_scale.errors import ModelError
from gkd_scale.types import Features, Teacher, UInt8Array


def run_teacher(teacher: Teacher, pixels: UInt8Array) -> Features:
    """``pixels`` (B, 3, H, W) uint8 to float32 features on the CPU; ModelError if they have another shape."""
    features = teacher(torch.from_numpy(pixels))
    images, tokens = len(pixels), teacher.grid[0] * teacher.grid[1]
    expected = ((images, teacher.dim), (images, tokens, teacher.dim))
    shapes = (tuple(features.cls.shape), tuple(features.patches.shape))
    if shapes != expected:
        raise ModelError(
            f"the teacher gave CLS {shapes[0]} and patches {shapes[1]}, not {expected[0]} and {expected[1]}",
            "check --teacher-layer, --image-size and --patch-size",
        )
    return Features(features.cls.float(), features.patches.float())
