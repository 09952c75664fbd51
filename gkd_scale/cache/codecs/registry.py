"""The codecs by name: one row each."""

from __future__ import annotations

import re

from gkd_scale.cache.codecs.base import STATE, Array, Codec, FittedCodec, State, state_hash
from gkd_scale.cache.codecs.bf16 import Bf16
from gkd_scale.cache.codecs.fp8 import Fp8
from gkd_scale.cache.codecs.fp16 import Fp16
from gkd_scale.cache.codecs.int8 import Int8
from gkd_scale.cache.codecs.pca import Pca
from gkd_scale.cache.codecs.tc import TransformCode
from gkd_scale.errors import CacheError, ConfigError, nearest

CODECS: tuple[type[Codec], ...] = (
    Fp16,
    Bf16,
    Int8,
    Fp8,
    Pca,
    TransformCode,
)


def parse(name: str) -> tuple[type[Codec], str]:
    """The class of codec ``name`` and the amount in its name; ConfigError names the nearest codec."""
    for codec in CODECS:
        if match := re.fullmatch(f"{codec.family}({codec.amount})", name):
            return codec, match[1]
    forms = [
        f"{codec.family}{codec.symbol} (for example {codec.family}{codec.example})"
        if codec.symbol
        else codec.family
        for codec in CODECS
    ]
    raise ConfigError(
        f"there is no codec '{name}'",
        nearest(name, [codec.family + codec.example for codec in CODECS]) or f"codecs: {', '.join(forms)}",
    )


def is_fitted(name: str) -> bool:
    """Whether codec ``name`` must be fitted to a teacher; ConfigError if there is no such codec."""
    return issubclass(parse(name)[0], FittedCodec)


def token_bytes(name: str, dim: int) -> dict[str, int]:
    """``{member suffix: bytes a token}`` of codec ``name`` for tokens of ``dim`` channels."""
    codec, amount = parse(name)
    return codec.token_bytes(amount, dim)


def fit_codec(name: str, mean: Array, covariance: Array) -> FittedCodec:
    """Codec ``name`` for tokens of this mean (C,) and covariance (C, C)."""
    codec, amount = parse(name)
    assert issubclass(codec, FittedCodec), name
    return codec.fit(mean, covariance, amount)


def get_codec(name: str, state: State | None = None) -> Codec:
    """The codec called ``name``; ConfigError names the nearest, or says that it has not been fitted."""
    codec, _ = parse(name)
    if not issubclass(codec, FittedCodec):
        return codec()
    if state is None:
        raise ConfigError(f"codec '{name}' must be fitted to a teacher first", "make a cache with it")
    return codec(state)


def load_codec(name: str, data: bytes | None, expected: str) -> Codec:
    """The codec of a cache from its ``codec.safetensors``; CacheError if its hash is not ``expected``."""
    if not is_fitted(name):
        return get_codec(name)
    if data is None or state_hash(data) != expected:
        raise CacheError(f"{STATE} {'is missing' if data is None else 'does not match the spec'}")
    from safetensors.numpy import load

    return get_codec(name, load(data))
