"""Codecs fitted to small tokens, and the way through files."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gkd_scale.cache.codecs import registry
from gkd_scale.cache.codecs.base import Array, Codec, FittedCodec
from gkd_scale.cache.codecs.registry import CODECS, fit_codec, get_codec, is_fitted
from gkd_scale.cache.shard import npy_bytes, npy_view
from gkd_scale.moments import Moments

shapes = array_shapes(min_dims=2, max_dims=2, max_side=12)
tokens = arrays(np.float32, shapes, elements=st.floats(-65000, 65000, width=32))

PLAIN = [codec.family for codec in CODECS if not issubclass(codec, FittedCodec)]
FITTED_NAMES = ["pca1", "pca4", "pca24", "tc1", "tc2.2", "tc5.75", "tc7"]


def through_files(codec: Codec, values: Array) -> Array:
    """Encode, write and read .npy members, decode; float32."""
    members = {suffix: npy_view(memoryview(npy_bytes(a))) for suffix, a in codec.encode(values).items()}
    assert all(suffix.endswith(".npy") and suffix == suffix.lower() for suffix in members)
    back = codec.decode(members)
    assert back.shape == values.shape and back.dtype == np.float16
    assert np.isfinite(back).all()
    return back.astype(np.float32)


def fit(dim: int, amount: float, noise: float = 0.0, family: str = "pca") -> tuple[Any, Array]:
    """Tokens of rank 3 around a mean, with noise, and the codec fitted to them."""
    rng = np.random.default_rng(dim)
    values = rng.normal(size=(400, 3)) @ rng.normal(size=(3, dim)) + 5 * rng.normal(size=dim)
    values = (values + noise * rng.normal(size=values.shape)).astype(np.float32)
    moments = Moments(dim)
    for part in np.array_split(values, 7):
        moments.update(part)
    return fit_codec(f"{family}{amount}", moments.mean, moments.covariance), values


def codec_of(name: str) -> Codec:
    """The codec of this name; a fitted one for tokens of 24 channels."""
    if not is_fitted(name):
        return get_codec(name)
    kind, amount = registry.parse(name)
    codec: Codec = fit(24, float(amount) if "." in amount else int(amount), 0.5, kind.family)[0]
    return codec
