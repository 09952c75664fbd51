"""Rounding, scales and products that several codecs share: arrays to encode, tensors to decode."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd_scale.cache.codecs.base import Array, Float16, Float32, tensor_of
from gkd_scale.types import UInt8Array

FP16_MAX = 65504.0
_INFINITE = 0x7C00 >> 7
"""The upper half of fp16's infinity."""


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


def clip(values: Tensor) -> Tensor:
    """To fp16; an error of rounding must not become infinity."""
    values = values.clamp(-FP16_MAX, FP16_MAX)
    if values.dtype == torch.float64:  # PyTorch would round twice, to float32 first
        return torch.from_numpy(values.numpy().astype(np.float16))
    return values.half()


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``; on the CPU by NumPy, whose bits the caches of earlier versions were read with."""
    return a @ b if a.device.type != "cpu" else torch.from_numpy(a.numpy() @ b.numpy())


def scales(values: Float32, top: float) -> UInt8Array:
    """One step a token, (N,), so that no value of (N, C) exceeds ``top`` steps.

    A step is the upper half of an fp16 without its sign, 5 bits of exponent and 3 of mantissa, rounded up:
    4.5% too large on average, which is 9% more squared error for half the bytes; never below 2^-17.
    ValueError for a step beyond fp16.
    """
    exact = np.abs(values).max(axis=1) / top
    with np.errstate(over="ignore"):
        halves = exact.astype(np.float16)
        halves = np.where(halves.astype(np.float32) < exact, np.nextafter(halves, np.float16(np.inf)), halves)
    upper = (halves.view(np.uint16).astype(np.uint32) + 127) >> 7
    if (upper >= _INFINITE).any():
        raise ValueError("a token is too far from those that the codec was fitted to")
    return upper.astype(np.uint8)


def steps(scale: Tensor) -> Tensor:
    """The steps (..., N, 1) that ``patch_scale.npy`` (..., N) holds; the first caches kept them as fp16."""
    halves = scale if scale.dtype == torch.float16 else (scale.to(torch.int16) << 7).view(torch.float16)
    return halves.float().unsqueeze(-1)


def divisor(scale: UInt8Array) -> Float32:
    """The steps (N, 1), with 1 for tokens that are zero."""
    wide: Float32 = steps(tensor_of(scale)).numpy()
    return np.where(wide == 0, np.float32(1), wide)


def quantize(values: Float32) -> dict[str, Array]:
    """(N, K) as int8 with one scale a token."""
    scale = scales(values, 127)
    return {"patch.npy": np.rint(values / divisor(scale)).astype(np.int8), "patch_scale.npy": scale}


def dequantize(members: Mapping[str, Tensor]) -> Tensor:
    """What :func:`quantize` stored, float32 (..., N, K)."""
    return members["patch.npy"] * steps(members["patch_scale.npy"])


def principal(covariance: Array) -> tuple[npt.NDArray[np.float64], Float32]:
    """Variances (C,), falling, and the components (C, C) as rows, each with its largest entry positive."""
    variances, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    rows = vectors[:, ::-1].T
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    return np.clip(variances[::-1], 0, None), np.ascontiguousarray(rows * signs[:, None], np.float32)
