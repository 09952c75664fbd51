"""Small operations on dense features that students and teachers share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gkd_scale.types import Features, Grid


def resample_tokens(tokens: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """(B, h·w, C) tokens on ``grid`` to (B, h'·w', C) on ``wanted``, bilinear; the same tensor if equal."""
    if grid == wanted:
        return tokens
    return to_tokens(F.interpolate(to_map(tokens, grid), size=wanted, mode="bilinear", align_corners=False))


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, h·w, C) row-major tokens to a map (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(feature_map: Tensor) -> Tensor:
    """A map (B, C, h, w) to row-major tokens (B, h·w, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def normalised(features: Features, norm: str) -> Features:
    """``none``: the features themselves. ``layer``: (x - mean) / std over the channels of every token.

    A transformer's tokens leave a LayerNorm; those of a convolutional network do not, and can be so large
    that an unscaled softmax over them is one-hot and a squared error dwarfs every other loss.
    """
    if norm == "none":
        return features
    return Features(*(F.layer_norm(each, each.shape[-1:]) for each in features))
