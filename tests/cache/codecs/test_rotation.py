"""The rotation of the channels: what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gkd_scale.cache.codecs.base import Array
from gkd_scale.cache.codecs.rotation import rotate

from .support import shapes


@given(arrays(np.float32, shapes, elements=st.floats(-100, 100, width=32)))
def test_the_rotation_is_orthogonal(values: Array) -> None:
    rotation = rotate(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose((rotation**2).sum(1), (values**2).sum(1), rtol=1e-4, atol=1e-3)
    back = rotate(torch.from_numpy(rotation), inverse=True).numpy()
    np.testing.assert_allclose(back, values, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 7, 96, 320, 384, 768])
def test_a_rotation_spreads_one_channel_over_all(channels: int) -> None:
    one = np.zeros((1, channels), np.float32)
    one[0, channels // 2] = 1
    assert rotate(torch.from_numpy(one)).abs().max() <= 1.01 * np.sqrt(2 / channels) or channels == 1
