"""Attention maps for a page."""

from __future__ import annotations

import base64

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.report.attention import MOST, AttentionMaps, attention_maps


def values(result: AttentionMaps) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    places = result.rows * result.columns
    maps = np.frombuffer(base64.b64decode(result.maps), np.uint8).reshape(places, places)
    return maps / 255 * np.array(result.peaks)[:, None]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 99))
def test_weights_still_sum_to_one_on_a_coarser_grid(rows: int, columns: int, seed: int) -> None:
    count = rows * columns
    logits = 3 * torch.randn(count, count, generator=torch.Generator().manual_seed(seed))
    result = attention_maps(logits.softmax(1), (rows, columns), kind="attention", total=True)
    assert 1 <= result.rows <= MOST and 1 <= result.columns <= MOST
    places = result.rows * result.columns
    np.testing.assert_allclose(values(result).sum(1), 1, atol=0.5 / 255 * places * max(result.peaks) + 1e-3)


def test_a_fine_grid_is_averaged_where_weights_are_similarities() -> None:
    result = attention_maps(torch.full((900, 900), 0.5), (30, 30), kind="similarity", total=False)
    assert (result.rows, result.columns) == (15, 15)
    np.testing.assert_allclose(values(result), 0.5, atol=1e-3)
