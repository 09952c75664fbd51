"""Tokens as colours: three principal components as red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_scale.types import UInt8Array


@dataclass(frozen=True)
class Components:
    """Three directions (k, C), k at most 3, around a mean (C,), and the scores ``low`` and ``high`` (k,).

    Fitted to one image's tokens. Other tokens in the same basis get the same colours for the same values.
    """

    mean: Tensor
    directions: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> Components:
        """The basis of tokens (N, C); colours spread from their 2nd to their 98th percentile."""
        tokens = tokens.double().cpu()
        mean = tokens.mean(0)
        _, _, directions = torch.linalg.svd(tokens - mean, full_matrices=False)
        directions = directions[:3]
        # The sign of a component is arbitrary: its largest coordinate is made positive.
        largest = directions.abs().argmax(1, keepdim=True)
        directions = directions * directions.gather(1, largest).sign()
        scores = (tokens - mean) @ directions.T
        return cls(mean, directions, scores.quantile(0.02, 0), scores.quantile(0.98, 0))

    def colours(self, tokens: Tensor) -> UInt8Array:
        """Tokens (N, C) to colours (N, 3) uint8."""
        scores = (tokens.double().cpu() - self.mean) @ self.directions.T
        spread = ((scores - self.low) / (self.high - self.low).clamp_min(1e-12)).clamp(0, 1)
        rgb = torch.zeros(len(tokens), 3, dtype=torch.uint8)
        rgb[:, : spread.shape[1]] = (255 * spread).round().to(torch.uint8)
        return rgb.numpy()
