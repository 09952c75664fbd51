"""How teacher tokens become arrays on disk.

A codec owns the patch tokens only; CLS is always fp16 and separate (0.4% of the bytes). To add one:
a class with ``name``, ``encode`` and ``decode``, registered in ``CODECS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gkd_scale.errors import ConfigError, nearest

Array = npt.NDArray[Any]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

FP16_MAX = 65504.0


class Codec(Protocol):
    """Patch tokens (N, C) to members of a sample and back."""

    name: str

    def encode(self, tokens: Float32) -> dict[str, Array]:
        """Tokens (N, C) to ``{member suffix: array}``; ValueError for what it cannot hold."""
        ...

    def decode(self, members: Mapping[str, Array]) -> Float16:
        """The members to tokens (N, C) as the trainer reads them."""
        ...


class Fp16:
    """Half precision: relative error at most 2^-11 within ±65504."""

    name = "fp16"

    def encode(self, tokens: Float32) -> dict[str, Array]:
        return {"patch.npy": to_fp16(tokens)}

    def decode(self, members: Mapping[str, Array]) -> Float16:
        return members["patch.npy"]


CODECS: dict[str, type[Codec]] = {"fp16": Fp16}


def get_codec(name: str) -> Codec:
    """The codec called ``name``; ConfigError names the nearest."""
    if name not in CODECS:
        raise ConfigError(
            f"there is no codec '{name}'", nearest(name, CODECS) or f"codecs: {', '.join(CODECS)}"
        )
    return CODECS[name]()


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
