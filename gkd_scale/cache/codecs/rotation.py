"""An orthogonal mix of the channels, which spreads a large channel over all.

The C x C matrix is made of random signs and the Kronecker product of Hadamard matrices for the power of two
in C and of a DCT for the odd rest: the fast Walsh-Hadamard transform as a few small matrix products.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gkd_scale.cache.codecs.arithmetic import product
from gkd_scale.cache.codecs.base import Float32
from gkd_scale.randomness import generator

_FACTOR = 32
"""Largest factor of the Hadamard part: a rotation costs C·(32 + …) and not C² operations a token."""


def rotate(tokens: Tensor, *, inverse: bool = False) -> Tensor:
    """Float32 tokens (..., C) times the matrix or its inverse: signs, then small factors, axis by axis."""
    signs, factors = _rotation(tokens.shape[-1], tokens.device)
    x = (tokens if inverse else tokens * signs).reshape(-1, len(signs))
    count = len(x)
    for factor in reversed(factors):
        x = product(x.reshape(count, -1, len(factor)), factor if inverse else factor.T).transpose(1, 2)
    x = x.reshape(tokens.shape)
    return x * signs if inverse else x


@lru_cache(maxsize=8)
def _rotation(channels: int, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Signs (C,) and the orthogonal factors of the rotation; a pure function of C."""
    signs = generator("codec.rotation", channels).choice(np.array([-1, 1], np.float32), channels)
    factors, rest = [], channels
    while rest % 2 == 0:
        size = int(min(rest & -rest, _FACTOR))
        factors.append(_hadamard(size))
        rest //= size
    if rest > 1:
        factors.append(_dct(rest))
    return torch.from_numpy(signs).to(device), [torch.from_numpy(factor).to(device) for factor in factors]


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
