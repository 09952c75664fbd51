"""bf16: what it keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from gkd_scale.cache.codecs.base import Array
from gkd_scale.cache.codecs.registry import get_codec

from .support import through_files, tokens


@given(values=tokens)
def test_bf16_rounds_to_eight_bits(values: Array) -> None:
    np.testing.assert_allclose(through_files(get_codec("bf16"), values), values, rtol=2**-8, atol=2**-24)
