from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gkd_scale.cache.codec import CODECS, Array, get_codec
from gkd_scale.cache.shard import npy_bytes, npy_view

tokens = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-65000, 65000, width=32)
)


@pytest.mark.parametrize("name", list(CODECS))
@given(values=tokens)
def test_round_trip_keeps_shape_and_precision(name: str, values: Array) -> None:
    codec = get_codec(name)
    members = {suffix: npy_view(memoryview(npy_bytes(a))) for suffix, a in codec.encode(values).items()}
    assert all(suffix.endswith(".npy") and suffix == suffix.lower() for suffix in members)
    back = codec.decode(members)
    assert back.shape == values.shape and back.dtype == np.float16
    np.testing.assert_allclose(back.astype(np.float32), values, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize(
    ("bad", "reason"),
    [(np.nan, "not finite"), (-np.inf, "not finite"), (70000, "beyond fp16"), (65520, "beyond")],
)
def test_what_cannot_be_held_is_refused(name: str, bad: float, reason: str) -> None:
    values = np.zeros((3, 4), np.float32)
    values[1, 2] = bad
    with pytest.raises(ValueError, match=reason):
        get_codec(name).encode(values)
