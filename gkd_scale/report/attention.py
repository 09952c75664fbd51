"""Attention maps that a page can show: for each place of an image, where it looks."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_scale.types import Grid

MOST = 24
"""Rows and columns of a map at most: a page holds all maps of an image, rows² · columns² bytes."""


@dataclass(frozen=True)
class AttentionMaps:
    """For each query of ``rows`` x ``columns`` a map of the same size, as base64 of uint8 in row-major order.

    ``peaks`` are the largest weights of each map, 0 to 1: a map's value 255 stands for its peak.
    """

    kind: str
    rows: int
    columns: int
    maps: str
    peaks: list[float]


def attention_maps(weights: Tensor, grid: Grid, *, kind: str, total: bool) -> AttentionMaps:
    """Weights (N, N), queries by keys on ``grid``, made coarse enough for a page.

    If a grid is too fine, queries are averaged over blocks. Keys are summed with ``total``, for weights
    that sum to 1, else averaged.
    """
    block = max(1, -(-max(grid) // MOST))
    rows, columns = (-(-side // block) for side in grid)
    maps = _coarse(weights.float(), grid, block, sum_up=total)
    maps = _coarse(maps.T, grid, block, sum_up=False).T
    peaks = maps.amax(1).clamp_min(1e-12)
    levels = (255 * maps.clamp_min(0) / peaks[:, None]).round().to(torch.uint8)
    text = base64.b64encode(levels.numpy().tobytes()).decode()
    return AttentionMaps(kind, rows, columns, text, [round(float(peak), 4) for peak in peaks])


def _coarse(values: Tensor, grid: Grid, block: int, *, sum_up: bool) -> Tensor:
    """(M, N) with N on ``grid`` to (M, N') on blocks; those at the border may be smaller."""
    if block == 1:
        return values
    parts = [-(-side // block) for side in grid]
    rows = torch.arange(grid[0]) // block
    columns = torch.arange(grid[1]) // block
    place = (rows[:, None] * parts[1] + columns[None]).flatten()
    sums = torch.zeros(len(values), parts[0] * parts[1]).index_add_(1, place, values)
    if sum_up:
        return sums
    return sums / torch.bincount(place, minlength=parts[0] * parts[1])
