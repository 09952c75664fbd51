"""How teacher tokens become arrays on disk.

A codec owns the patch tokens only; CLS is always fp16 and separate (0.4% of the bytes). All of them
decode to fp16, which is what a BatchSource delivers; beyond fp16's range nothing is stored.

==========  ==============  =============================================================================
name        bytes a value   what it does
==========  ==============  =============================================================================
``fp16``    2               rounds; the reference
``bf16``    2               rounds, 8 bits of mantissa; stored as uint16
``int8``    1               rotates channels (randomised Hadamard), then int8 with one scale a token
``fp8``     1               e4m3 with one scale a token; stored as uint8
``pcaK``    K / C           the K leading principal components, rotated, as int8 with one scale a token
``tcB``     B / 8           transform coding: all components, B bits a value on average, most to the largest
==========  ==============  =============================================================================

Why rotate: a few channels of a transformer's tokens are 20 times the others and would set the step for
all. An orthogonal mix of the channels spreads them out; distances and dot products stay as they are.

To add a codec: a class with ``name``, ``verbatim``, ``encode`` and ``decode``, registered in ``CODECS``;
one that must be fitted first also has a ``state``, kept in the cache as ``codec.safetensors``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gkd_scale.errors import CacheError, ConfigError, nearest
from gkd_scale.randomness import generator
from gkd_scale.types import UInt8Array

Array = npt.NDArray[Any]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
State = dict[str, Float32]

FP16_MAX = 65504.0
FP8_MAX = 448.0
STATE = "codec.safetensors"
"""File of a fitted codec's state, in the root of the cache."""

_FACTOR = 32
"""Largest factor of the Hadamard part: a rotation costs C·(32 + …) and not C² operations a token."""


_MAX_BITS = 8
_STEPS = np.array([0, 1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308], np.float32)
_ERRORS = (1, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.0000869)
"""Optimal uniform quantiser of a unit Gaussian with 0 to 8 bits: its step and its error
(J. Max, "Quantizing for minimum distortion", 1960)."""


class Codec(Protocol):
    """Patch tokens (N, C) to members of a sample and back."""

    name: str

    verbatim: bool
    """Whether ``patch.npy`` is what ``decode`` gives, so that a reader may read it into place."""

    def encode(self, tokens: Float32) -> dict[str, Array]:
        """Tokens (N, C) to ``{member suffix: array}``; ValueError for what it cannot hold."""
        ...

    def decode(self, members: Mapping[str, Array]) -> Float16:
        """The members to tokens (N, C) as the trainer reads them."""
        ...


class Fp16:
    """Half precision: relative error at most 2^-11 within ±65504."""

    name = "fp16"
    verbatim = True

    def encode(self, tokens: Float32) -> dict[str, Array]:
        return {"patch.npy": to_fp16(tokens)}

    def decode(self, members: Mapping[str, Array]) -> Float16:
        return members["patch.npy"]


class Bf16:
    """bfloat16, to nearest even: relative error at most 2^-8 and the bytes of fp16; for comparison."""

    name = "bf16"
    verbatim = False

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        bits = np.ascontiguousarray(tokens, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return {"patch.npy": rounded.astype(np.uint16)}

    def decode(self, members: Mapping[str, Array]) -> Float16:
        return _clipped((members["patch.npy"].astype(np.uint32) << 16).view(np.float32))


class Int8:
    """Rotated, then one scale a token: the L2 error of a token is at most √C/2 steps of 9/8 max|x|/127."""

    name = "int8"
    verbatim = False

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        return _quantized(rotate(tokens))

    def decode(self, members: Mapping[str, Array]) -> Float16:
        return _clipped(rotate(_dequantized(members), inverse=True))


class Fp8:
    """e4m3 with one scale a token: relative error at most 2^-4 down to 2^-15 of the largest value."""

    name = "fp8"
    verbatim = False

    def encode(self, tokens: Float32) -> dict[str, Array]:
        import torch

        to_fp16(tokens)
        scale = _scales(tokens, FP8_MAX)
        eighths = torch.from_numpy(tokens / _divisor(scale)).to(torch.float8_e4m3fn)
        return {"patch.npy": eighths.view(torch.uint8).numpy(), "patch_scale.npy": scale}

    def decode(self, members: Mapping[str, Array]) -> Float16:
        return _clipped(_fp8_values()[members["patch.npy"]] * _steps(members["patch_scale.npy"]))


class Pca:
    """K principal components as int8. ``state``: ``mean`` (C,), ``basis`` (K, C) with orthonormal rows.

    The rows are the leading components, already mixed by the rotation, so that all have about the same
    variance and one scale a token serves them all; to decode is one matrix product.
    """

    verbatim = False

    def __init__(self, state: State) -> None:
        self.state = state
        self.name = f"pca{len(state['basis'])}"

    @classmethod
    def fit(cls, mean: Array, covariance: Array, amount: str) -> Pca:
        """The codec for tokens of this mean (C,) and covariance (C, C); ConfigError if C < components."""
        components = int(amount)
        if components > len(mean):
            raise ConfigError(
                f"codec 'pca{components}' wants more components than the {len(mean)} channels there are",
                f"give pca{max(1, round(0.3 * len(mean)) - 2)} or another number below {len(mean)}",
            )
        _, basis = _principal(covariance)
        mixed = rotate(np.ascontiguousarray(basis[:components].T)).T
        return cls({"mean": np.asarray(mean, np.float32), "basis": np.ascontiguousarray(mixed)})

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        return _quantized((tokens - self.state["mean"]) @ self.state["basis"].T)

    def decode(self, members: Mapping[str, Array]) -> Float16:
        return _clipped(_dequantized(members) @ self.state["basis"] + self.state["mean"])


class TransformCode:
    """Each principal component with a width of its own, as many bits as its variance deserves.

    ``state``: ``mean`` (C,), ``basis`` (C, C) by falling variance, ``sigma`` (C,) standard deviations,
    ``bits`` (C,) widths from 0 to 8, ``amount`` the B asked for. A token is divided by its gain (its
    root mean square in units of sigma, kept as the scale), so that tokens of unusual norm do not clip;
    what a uniform quantiser makes of each component is packed into one row of bits.
    """

    verbatim = False

    def __init__(self, state: State) -> None:
        self.state = state
        self.name = f"tc{float(state['amount'][0]):.4g}"
        self._bits = state["bits"].astype(np.int64)
        self._used = int((self._bits > 0).sum())
        bits = self._bits[: self._used]
        self._component = np.repeat(np.arange(self._used), bits)  # of each packed bit
        starts = np.cumsum(bits) - bits
        self._shift = (np.arange(bits.sum()) - np.repeat(starts, bits)).astype(np.int32)
        self._starts = starts
        self._step = _STEPS[bits] * state["sigma"][: self._used]
        self._middle = (2.0**bits / 2 - 0.5).astype(np.float32)

    @classmethod
    def fit(cls, mean: Array, covariance: Array, amount: str) -> TransformCode:
        """The codec for tokens of this mean (C,) and covariance (C, C) at ``amount`` bits a value."""
        variances, basis = _principal(covariance)
        bits = _allocate(variances, round(float(amount) * len(mean)))
        state = {
            "mean": np.asarray(mean, np.float32),
            "basis": basis,
            "sigma": np.sqrt(variances).astype(np.float32),
            "bits": bits.astype(np.float32),
            "amount": np.array([float(amount)], np.float32),
        }
        return cls(state)

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        z = (tokens - self.state["mean"]) @ self.state["basis"][: self._used].T
        sigma = np.maximum(self.state["sigma"][: self._used], np.float32(1e-30))
        gain = _scales(np.sqrt(np.square(z / sigma).mean(axis=1, keepdims=True)), 1)
        levels = z / (self._step * _divisor(gain)) + self._middle
        levels = np.rint(np.clip(levels, 0, 2 * self._middle)).astype(np.int32)
        packed = np.packbits((levels[:, self._component] >> self._shift) & 1, axis=1, bitorder="little")
        return {"patch.npy": packed, "patch_scale.npy": gain}

    def decode(self, members: Mapping[str, Array]) -> Float16:
        count = len(self._component)
        bits = np.unpackbits(members["patch.npy"], axis=1, count=count, bitorder="little")
        levels = np.add.reduceat(bits.astype(np.int32) << self._shift, self._starts, axis=1)
        z = (levels - self._middle) * (self._step * _steps(members["patch_scale.npy"]))
        return _clipped(z @ self.state["basis"][: self._used] + self.state["mean"])


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Fp16, Bf16, Int8, Fp8)}
FITTED: dict[str, type[Pca] | type[TransformCode]] = {"pca": Pca, "tc": TransformCode}
"""Codecs that are fitted to a teacher, by the letters before their number."""


def is_fitted(name: str) -> bool:
    """Whether codec ``name`` must be fitted to a teacher; ConfigError where there is no such codec."""
    if name in CODECS:
        return False
    if re.fullmatch(r"pca[1-9]\d{0,4}|tc[1-7](\.\d{1,2})?", name):
        return True
    raise ConfigError(
        f"there is no codec '{name}'",
        nearest(name, [*CODECS, "pca64", "tc2.2"])
        or f"codecs: {', '.join(CODECS)}, pcaK (for example pca64), tcB (for example tc2.2)",
    )


def fit_codec(name: str, mean: Array, covariance: Array) -> Codec:
    """Codec ``name`` for tokens of this mean (C,) and covariance (C, C)."""
    family = name.rstrip("0123456789.")
    return FITTED[family].fit(mean, covariance, name.removeprefix(family))


def get_codec(name: str, state: State | None = None) -> Codec:
    """The codec called ``name``; ConfigError names the nearest, or says that it has not been fitted."""
    if not is_fitted(name):
        return CODECS[name]()
    if state is None:
        raise ConfigError(f"codec '{name}' must be fitted to a teacher first", "make a cache with it")
    return FITTED[name.rstrip("0123456789.")](state)


def state_bytes(codec: Codec) -> bytes | None:
    """The content of ``codec.safetensors``; None for a codec without a state."""
    state: State | None = getattr(codec, "state", None)
    if state is None:
        return None
    from safetensors.numpy import save

    return bytes(save(state))


def state_hash(data: bytes | None) -> str:
    """SHA-256 of a codec's state; the empty string where it has none."""
    return "" if data is None else hashlib.sha256(data).hexdigest()


def load_codec(name: str, data: bytes | None, expected: str) -> Codec:
    """The codec of a cache from its ``codec.safetensors``; CacheError where the bytes are not as expected."""
    if not is_fitted(name):
        return get_codec(name)
    if data is None or state_hash(data) != expected:
        raise CacheError(f"{STATE} {'is missing' if data is None else 'does not match the spec'}")
    from safetensors.numpy import load

    return get_codec(name, load(data))


# ----------------------------------------------------------------------------------- arithmetic


def to_fp16(values: Float32) -> Float16:
    """Round to half precision; ValueError for NaN, infinity and what rounds to infinity."""
    with np.errstate(over="ignore"):
        halves: Float16 = np.ascontiguousarray(values, dtype=np.float16)
    if not np.isfinite(halves).all():
        bad = values[~np.isfinite(halves)]
        if np.isfinite(bad).all():
            raise ValueError(f"the value {bad[0]:g} is beyond fp16 (±{FP16_MAX:g})")
        raise ValueError("there are values that are not finite (NaN or infinity)")
    return halves


def rotate(tokens: Float32, *, inverse: bool = False) -> Float32:
    """(N, C) through an orthogonal C x C matrix: random signs, then small factors, one axis at a time.

    The matrix is the Kronecker product of Hadamard matrices for the power of two in C and of a DCT for
    the odd rest: the fast Walsh-Hadamard transform as a few small matrix products.
    """
    signs, factors = _rotation(tokens.shape[1])
    x = tokens if inverse else tokens * signs
    for factor in reversed(factors):
        x = x.reshape(len(tokens), -1, len(factor)) @ (factor if inverse else factor.T)
        x = x.swapaxes(1, 2)
    x = x.reshape(tokens.shape)
    return np.ascontiguousarray(x * signs if inverse else x, np.float32)


@lru_cache(maxsize=8)
def _rotation(channels: int) -> tuple[Float32, list[Float32]]:
    """Signs (C,) and the orthogonal factors of the rotation; a pure function of C."""
    signs = generator("codec.rotation", channels).choice(np.array([-1, 1], np.float32), channels)
    factors, rest = [], channels
    while rest % 2 == 0:
        size = int(min(rest & -rest, _FACTOR))
        factors.append(_hadamard(size))
        rest //= size
    if rest > 1:
        factors.append(_dct(rest))
    return signs, factors


def _hadamard(size: int) -> Float32:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(matrix, np.array([[1, 1], [1, -1]]) / np.sqrt(2))
    return matrix.astype(np.float32)


def _dct(size: int) -> Float32:
    """The orthonormal DCT-II."""
    rows, columns = np.indices((size, size))
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * columns + 1) * rows / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def _principal(covariance: Array) -> tuple[npt.NDArray[np.float64], Float32]:
    """Variances (C,), falling, and the components (C, C) as rows, each with its largest entry positive."""
    variances, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    rows = vectors[:, ::-1].T
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    return np.clip(variances[::-1], 0, None), np.ascontiguousarray(rows * signs[:, None], np.float32)


def _allocate(variances: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Bits of each component: one after the other where it lowers the error most. At least one bit."""
    gains = -np.diff(_ERRORS)  # falling: greedy is optimal
    worth = variances[:, None] * gains
    chosen = np.argsort(-worth, axis=None, kind="stable")[: max(1, min(total, worth.size))]
    bits = np.bincount(chosen // _MAX_BITS, minlength=len(variances))
    return np.sort(bits)[::-1]


def _scales(values: Float32, top: float) -> UInt8Array:
    """One step a token, (N,), so that no value of (N, C) exceeds ``top`` steps.

    A step is the upper half of an fp16 without its sign, 5 bits of exponent and 3 of mantissa, rounded up:
    4.5% too large on average, which is 9% more squared error for half the bytes; never below 2^-17.
    """
    exact = np.abs(values).max(axis=1) / top
    halves = exact.astype(np.float16)
    halves = np.where(halves.astype(np.float32) < exact, np.nextafter(halves, np.float16(np.inf)), halves)
    return ((halves.view(np.uint16).astype(np.uint32) + 127) >> 7).astype(np.uint8)


def _steps(scale: Array) -> Float32:
    """The steps (N, 1) that ``patch_scale.npy`` holds; the first caches kept them as fp16."""
    halves = scale if scale.dtype == np.float16 else (scale.astype(np.uint16) << 7).view(np.float16)
    wide: Float32 = halves.astype(np.float32)[:, None]
    return wide


def _divisor(scale: UInt8Array) -> Float32:
    """The steps (N, 1), with 1 for tokens that are zero."""
    steps = _steps(scale)
    return np.where(steps == 0, np.float32(1), steps)


def _quantized(values: Float32) -> dict[str, Array]:
    scale = _scales(values, 127)
    return {"patch.npy": np.rint(values / _divisor(scale)).astype(np.int8), "patch_scale.npy": scale}


def _dequantized(members: Mapping[str, Array]) -> Float32:
    values: Float32 = members["patch.npy"] * _steps(members["patch_scale.npy"])
    return values


def _clipped(values: Float32) -> Float16:
    """To fp16; an error of rounding must not become infinity."""
    return np.clip(values, -FP16_MAX, FP16_MAX).astype(np.float16)


@lru_cache(maxsize=1)
def _fp8_values() -> Float32:
    """What each of the 256 bytes means in e4m3."""
    import torch

    values: Float32 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    return values
