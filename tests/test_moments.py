from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.moments import Moments


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.floats(-1000, 1000))
@settings(max_examples=50)
def test_streaming_equals_at_once_for_every_cut(parts: list[int], mean: float) -> None:
    sizes = [*parts, 3]
    values = (np.random.default_rng(sum(sizes)).normal(size=(sum(sizes), 4)) + mean).astype(np.float32)
    moments = Moments(4)
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        moments.update(part)
    wide = values.astype(np.float64)
    np.testing.assert_allclose(moments.mean, wide.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(wide.T, bias=True), rtol=1e-5, atol=1e-5)
    norms = np.linalg.norm(wide, axis=1)
    assert moments.count == len(values)
    assert moments.norm_mean == pytest.approx(norms.mean(), rel=1e-5)
    assert (moments.norm_min, moments.norm_max) == pytest.approx((norms.min(), norms.max()), rel=1e-5)


def test_explained_variance_rises_to_one() -> None:
    moments = Moments(3)
    moments.update(np.random.default_rng(0).normal(size=(500, 3)) * np.array([3, 1, 0.1]))
    shares = moments.shares()
    assert shares[0] == pytest.approx(0.9, abs=0.03) and shares[-1] == pytest.approx(1)
    assert (np.diff(shares) >= 0).all()
    constant = Moments(2)
    constant.update(np.ones((4, 2)))
    assert constant.shares().tolist() == [1, 1]
