"""Tokens on other grids."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.models.tokens import resample_tokens, to_map, to_tokens


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_resampled_grids_keep_constants_and_bounds(h: int, w: int, H: int, W: int) -> None:
    tokens = torch.randn(2, h * w, 3)
    out = resample_tokens(tokens, (h, w), (H, W))
    assert out.shape == (2, H * W, 3)
    assert float(out.amax()) <= float(tokens.amax()) + 1e-5
    constant = torch.ones(1, h * w, 3) * 5
    torch.testing.assert_close(resample_tokens(constant, (h, w), (H, W)), torch.full((1, H * W, 3), 5.0))


def test_rows_stay_rows() -> None:
    tokens = torch.arange(6.0).view(1, 6, 1)
    out = resample_tokens(tokens, (2, 3), (4, 3)).view(4, 3)
    assert (out.diff(dim=0) >= 0).all()
    torch.testing.assert_close(out.diff(dim=1), torch.ones(4, 2))


def test_tokens_and_maps_are_inverse() -> None:
    tokens = torch.randn(2, 6, 4)
    assert torch.equal(to_tokens(to_map(tokens, (2, 3))), tokens)
    assert torch.equal(to_map(tokens, (2, 3))[0, :, 1, 0], tokens[0, 3])
