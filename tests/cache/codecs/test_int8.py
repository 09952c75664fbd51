"""int8: what it keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from gkd_scale.cache.codecs.base import Array
from gkd_scale.cache.codecs.registry import get_codec

from .support import through_files, tokens


def step(values: Array) -> Array:
    """The largest int8 step that a row (N, C) may have, (N, 1): a rotation keeps the L2 norm."""
    norm = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    return np.maximum(norm / 127 * (1 + 2**-3 + 2**-10), 2**-17)


@given(values=tokens)
def test_int8_errs_by_half_a_step_a_channel_at_most(values: Array) -> None:
    error = np.linalg.norm(through_files(get_codec("int8"), values) - values, axis=1, keepdims=True)
    rounding = 2**-10 * np.linalg.norm(values, axis=1, keepdims=True) + 1e-6
    assert (error <= np.sqrt(values.shape[1]) * step(values) / 2 + rounding).all()


def test_the_rotation_beats_outlier_channels() -> None:
    """Five outlier channels at 20 times the others: plain int8 has a relative MSE of 9e-4 here."""
    values = np.random.default_rng(0).normal(size=(256, 384)).astype(np.float32)
    values[:, :5] *= 20

    def relative(name: str) -> float:
        back = through_files(get_codec(name), values)
        return float(((back - values) ** 2).sum() / (values**2).sum())

    plain = np.rint(values / (scale := np.abs(values).max(1, keepdims=True) / 127)) * scale
    assert ((plain - values) ** 2).sum() / (values**2).sum() > 8e-4
    assert relative("int8") < 7e-5
    assert relative("fp8") < 1e-3 and relative("bf16") < 1e-5


def test_scales_as_fp16_are_read_too() -> None:
    values = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    members = get_codec("int8").encode(values)
    assert members["patch_scale.npy"].dtype == np.uint8
    older = (members["patch_scale.npy"].astype(np.uint16) << 7).view(np.float16)
    back = get_codec("int8").decode({**members, "patch_scale.npy": older})
    np.testing.assert_array_equal(back, get_codec("int8").decode(members))
