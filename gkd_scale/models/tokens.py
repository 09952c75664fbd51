"""Small operations on dense features that students and teachers share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gkd_scale.types import Grid


def resample_tokens(tokens: Tensor, grid: Grid, target: Grid) -> Tensor:
    """(B, h·w, C) tokens on ``grid`` to (B, h'·w', C) on ``target``, bilinear; the same tensor if equal."""
    if grid == target:
        return tokens
    return to_tokens(F.interpolate(to_map(tokens, grid), size=target, mode="bilinear", align_corners=False))


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, h·w, C) row-major tokens to a map (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(feature_map: Tensor) -> Tensor:
    """A map (B, C, h, w) to row-major tokens (B, h·w, C)."""
    return feature_map.flatten(2).transpose(1, 2)
