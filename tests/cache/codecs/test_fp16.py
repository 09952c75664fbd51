"""fp16: what it keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from gkd_scale.cache.codecs.base import Array
from gkd_scale.cache.codecs.registry import get_codec

from .support import through_files, tokens


@given(values=tokens)
def test_fp16_rounds_to_eleven_bits(values: Array) -> None:
    np.testing.assert_allclose(through_files(get_codec("fp16"), values), values, rtol=2**-11, atol=2**-25)
