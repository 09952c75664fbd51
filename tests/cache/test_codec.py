from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gkd_scale.cache.codec import (
    _ERRORS,
    CODECS,
    FP16_MAX,
    Array,
    Codec,
    Pca,
    TransformCode,
    fit_codec,
    get_codec,
    is_fitted,
    load_codec,
    rotate,
    state_bytes,
    state_hash,
)
from gkd_scale.cache.shard import npy_bytes, npy_view
from gkd_scale.errors import CacheError, ConfigError
from gkd_scale.moments import Moments

shapes = array_shapes(min_dims=2, max_dims=2, max_side=12)
tokens = arrays(np.float32, shapes, elements=st.floats(-65000, 65000, width=32))
EXTREMES = [0.0, 1e-8, 6e-5, 1.0, 448.0, FP16_MAX]


def through_files(codec: Codec, values: Array) -> Array:
    """Encode, write and read .npy members, decode; float32."""
    members = {suffix: npy_view(memoryview(npy_bytes(a))) for suffix, a in codec.encode(values).items()}
    assert all(suffix.endswith(".npy") and suffix == suffix.lower() for suffix in members)
    back = codec.decode(members)
    assert back.shape == values.shape and back.dtype == np.float16
    assert np.isfinite(back).all()
    return back.astype(np.float32)


def step(values: Array) -> Array:
    """The largest int8 step that a row (N, C) may have, (N, 1): a rotation keeps the L2 norm."""
    norm = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    return np.maximum(norm / 127 * (1 + 2**-3 + 2**-10), 2**-17)


@given(values=tokens)
def test_fp16_rounds_to_eleven_bits(values: Array) -> None:
    np.testing.assert_allclose(through_files(get_codec("fp16"), values), values, rtol=2**-11, atol=2**-25)


@given(values=tokens)
def test_bf16_rounds_to_eight_bits(values: Array) -> None:
    np.testing.assert_allclose(through_files(get_codec("bf16"), values), values, rtol=2**-8, atol=2**-24)


@given(values=tokens)
def test_fp8_keeps_four_bits_of_what_is_large_in_its_token(values: Array) -> None:
    largest = np.abs(values).max(axis=1, keepdims=True)
    error = np.abs(through_files(get_codec("fp8"), values) - values)
    assert (error <= 1.01 * (np.abs(values) * 2**-4 + largest * 2**-15) + 1e-4 * (largest < 1)).all()


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


@given(arrays(np.float32, shapes, elements=st.floats(-100, 100, width=32)))
def test_the_rotation_is_orthogonal(values: Array) -> None:
    turned = rotate(values)
    np.testing.assert_allclose((turned**2).sum(1), (values**2).sum(1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(rotate(turned, inverse=True), values, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 7, 96, 320, 384, 768])
def test_a_rotation_spreads_one_channel_over_all(channels: int) -> None:
    one = np.zeros((1, channels), np.float32)
    one[0, channels // 2] = 1
    assert np.abs(rotate(one)).max() <= 1.01 * np.sqrt(2 / channels) or channels == 1


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("value", EXTREMES)
def test_extreme_values_stay_finite_and_keep_their_sign(name: str, value: float) -> None:
    values = np.zeros((3, 8), np.float32)
    values[0], values[1, 3] = value, -value
    back = through_files(get_codec(name), values)
    assert (back[2] == 0).all()
    assert np.abs(back[:2] - values[:2]).max() <= 0.05 * value + 8e-6
    assert (values * back >= 0).all() or value < 1e-3


def fitted(dim: int, amount: float, noise: float = 0.0, family: str = "pca") -> tuple[Any, Array]:
    """Tokens of rank 3 around a mean, with noise, and the codec fitted to them."""
    rng = np.random.default_rng(dim)
    values = rng.normal(size=(400, 3)) @ rng.normal(size=(3, dim)) + 5 * rng.normal(size=dim)
    values = (values + noise * rng.normal(size=values.shape)).astype(np.float32)
    moments = Moments(dim)
    for part in np.array_split(values, 7):
        moments.update(part)
    return fit_codec(f"{family}{amount}", moments.mean, moments.covariance), values


def test_pca_holds_what_lies_in_its_components() -> None:
    codec, values = fitted(24, 4)
    assert codec.name == "pca4" and codec.state["basis"].shape == (4, 24)
    np.testing.assert_allclose(codec.state["basis"] @ codec.state["basis"].T, np.eye(4), atol=1e-5)
    members = codec.encode(values)
    assert members["patch.npy"].shape == (400, 4) and members["patch.npy"].dtype == np.int8
    centred = values - values.mean(0)
    assert ((through_files(codec, values) - values) ** 2).sum() < 2e-4 * (centred**2).sum()


@given(st.integers(1, 24))
@settings(max_examples=24)
def test_pca_errs_by_the_components_it_leaves_out(components: int) -> None:
    codec, values = fitted(24, components, noise=0.5)
    centred = (values - values.mean(0)).astype(np.float64)
    variances = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    error = float(((through_files(codec, values) - values) ** 2).sum())
    assert error <= 1.02 * variances[components:].sum() + 1e-3 * variances.sum()
    assert error >= 0.98 * variances[components:].sum() - 1e-4 * variances.sum()


@given(st.sampled_from([1, 1.5, 2.2, 3, 4, 5.75, 7]), st.floats(0.01, 3))
@settings(max_examples=30)
def test_transform_coding_errs_by_what_the_widths_promise(bits: float, noise: float) -> None:
    """At most 1.6 times the error of optimal quantisers of Gaussian components, with B bits a value."""
    codec, values = fitted(24, bits, noise=noise, family="tc")
    members = codec.encode(values)
    assert members["patch.npy"].shape == (400, int(np.ceil(round(24 * bits) / 8)))
    sigma, widths = codec.state["sigma"], codec.state["bits"].astype(int)
    assert widths.sum() == round(24 * bits) and (np.diff(widths) <= 0).all()
    promised = (sigma**2 * np.array(_ERRORS)[widths]).sum() * len(values)
    error = float(((through_files(codec, values) - values) ** 2).sum())
    assert error <= 1.6 * promised + 1e-5 * (values**2).sum()


def test_transform_coding_beats_pca_at_equal_bytes_and_holds_tokens_of_large_norm() -> None:
    pca, values = fitted(32, 8, noise=1.0)
    tc, _ = fitted(32, 2, noise=1.0, family="tc")
    assert pca.encode(values)["patch.npy"].nbytes == tc.encode(values)["patch.npy"].nbytes

    def error(codec: Codec, tokens: Array) -> float:
        return float(((through_files(codec, tokens) - tokens) ** 2).sum() / tokens.var(0).sum())

    assert error(tc, values) < 0.5 * error(pca, values)
    far = values + 50 * (values[:1] - values.mean(0))
    relative = np.linalg.norm(through_files(tc, far) - far, axis=1) / np.linalg.norm(far, axis=1)
    assert relative.max() < 0.5


@pytest.mark.parametrize(("family", "kind"), [("pca", Pca), ("tc", TransformCode)])
def test_a_fitted_state_goes_through_its_file(family: str, kind: type) -> None:
    codec, values = fitted(24, 4, family=family)
    data = state_bytes(codec)
    assert data is not None and state_bytes(codec) == data
    back = load_codec(codec.name, data, state_hash(data))
    assert type(back) is kind and back.name == f"{family}4"
    np.testing.assert_array_equal(through_files(back, values), through_files(codec, values))
    for damaged in (None, data[:-1], bytes(len(data))):
        with pytest.raises(CacheError, match=r"codec\.safetensors"):
            load_codec(codec.name, damaged, state_hash(data))
    assert state_bytes(get_codec("int8")) is None and state_hash(None) == ""


@pytest.mark.parametrize("name", [*CODECS, "pca4", "tc4"])
@pytest.mark.parametrize(
    ("bad", "reason"),
    [(np.nan, "not finite"), (-np.inf, "not finite"), (70000, "beyond fp16"), (65520, "beyond")],
)
def test_what_cannot_be_held_is_refused(name: str, bad: float, reason: str) -> None:
    values = np.zeros((3, 24), np.float32)
    values[1, 2] = bad
    codec = get_codec(name) if name in CODECS else fitted(24, 4, family=name[:-1])[0]
    with pytest.raises(ValueError, match=reason):
        codec.encode(values)


def test_scales_as_fp16_are_read_too() -> None:
    values = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    members = get_codec("int8").encode(values)
    assert members["patch_scale.npy"].dtype == np.uint8
    older = (members["patch_scale.npy"].astype(np.uint16) << 7).view(np.float16)
    back = get_codec("int8").decode({**members, "patch_scale.npy": older})
    np.testing.assert_array_equal(back, get_codec("int8").decode(members))


def test_names() -> None:
    assert is_fitted("pca96") and is_fitted("tc2.25") and not is_fitted("int8")
    for name, said in [
        ("in8", "did you mean 'int8'"),
        ("pca0", "pca"),
        ("tc9", "did you mean"),
        ("", "codecs: fp16, .*pcaK"),
        ("zip", "codecs: fp16"),
    ]:
        with pytest.raises(ConfigError, match=said):
            is_fitted(name)
    with pytest.raises(ConfigError, match="must be fitted"):
        get_codec("pca8")
    with pytest.raises(ConfigError, match="more components than the 24 channels"):
        fitted(24, 25)
