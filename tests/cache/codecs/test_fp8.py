"""fp8: what it keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from gkd_scale.cache.codecs.base import Array
from gkd_scale.cache.codecs.registry import get_codec

from .support import through_files, tokens


@given(values=tokens)
def test_fp8_keeps_four_bits_of_what_is_large_in_its_token(values: Array) -> None:
    largest = np.abs(values).max(axis=1, keepdims=True)
    error = np.abs(through_files(get_codec("fp8"), values) - values)
    assert (error <= 1.01 * (np.abs(values) * 2**-4 + largest * 2**-15) + 1e-4 * (largest < 1)).all()
