"""Colour jitter for the student: pure in its name, in range, and of the strength asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gkd_scale.distill.jitter import jitter as apply
from gkd_scale.distill.jitter import jitter_factors

PIXELS = torch.randint(0, 256, (3, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SIDS = ("a", "b", "c")


def jitter(pixels: Tensor, sids: Sequence[str], epochs: Sequence[int], strength: float, seed: int) -> Tensor:
    return apply(pixels, jitter_factors(sids, epochs, strength, seed))


@given(st.floats(0, 0.99), st.integers(0, 2**31), st.integers(0, 5))
def test_pixels_stay_in_range_and_follow_from_the_name(strength: float, seed: int, epoch: int) -> None:
    first, again = (jitter(PIXELS, SIDS, (epoch,) * 3, strength, seed) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == PIXELS.shape and float(first.min()) >= 0 and float(first.max()) <= 255


def test_no_strength_leaves_the_pixels() -> None:
    assert torch.allclose(jitter(PIXELS, SIDS, (0, 0, 0), 0.0, 0), PIXELS.float(), atol=1e-3)


def test_an_image_has_factors_of_its_own_whatever_stands_beside_it() -> None:
    together = jitter(PIXELS, SIDS, (0, 0, 1), 0.5, 7)
    alone = jitter(PIXELS[2:], SIDS[2:], (1,), 0.5, 7)
    assert torch.allclose(together[2:], alone, atol=1e-4)
    same = jitter(PIXELS[:1].expand(2, -1, -1, -1), ("a", "b"), (0, 0), 0.5, 7)
    assert not torch.allclose(same[0], same[1], atol=1)


def test_grey_stays_grey() -> None:
    grey = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    out = jitter(grey, ("a",), (0,), 0.5, 0)
    assert torch.allclose(out, out[:, :1].expand_as(out), atol=1e-3)
    assert float(out.min()) >= 50 and float(out.max()) <= 150
