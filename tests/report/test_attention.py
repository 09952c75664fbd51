"""Attention maps for a page."""

from __future__ import annotations

import base64

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.report.attention import MOST, AttentionMaps, attention_maps


def values(found: AttentionMaps) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    places = found.rows * found.columns
    maps = np.frombuffer(base64.b64decode(found.maps), np.uint8).reshape(places, places)
    return maps / 255 * np.array(found.peaks)[:, None]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 99))
def test_weights_still_sum_to_one_on_a_coarser_grid(rows: int, columns: int, seed: int) -> None:
    count = rows * columns
    logits = 3 * torch.randn(count, count, generator=torch.Generator().manual_seed(seed))
    found = attention_maps(logits.softmax(1), (rows, columns), kind="attention", total=True)
    assert 1 <= found.rows <= MOST and 1 <= found.columns <= MOST
    places = found.rows * found.columns
    np.testing.assert_allclose(values(found).sum(1), 1, atol=0.5 / 255 * places * max(found.peaks) + 1e-3)


def test_a_fine_grid_is_averaged_where_weights_are_similarities() -> None:
    found = attention_maps(torch.full((900, 900), 0.5), (30, 30), kind="similarity", total=False)
    assert (found.rows, found.columns) == (15, 15)
    np.testing.assert_allclose(values(found), 0.5, atol=1e-3)
