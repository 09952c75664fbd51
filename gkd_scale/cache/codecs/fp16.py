"""``fp16``: half precision."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gkd_scale.cache.codecs.arithmetic import to_fp16
from gkd_scale.cache.codecs.base import Array, Codec, Float32


class Fp16(Codec):
    """Relative error at most 2^-11 within ±65504."""

    family = "fp16"
    verbatim = True

    @staticmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:  # noqa: ARG004
        return {"patch.npy": 2 * dim}

    def encode(self, tokens: Float32) -> dict[str, Array]:
        return {"patch.npy": to_fp16(tokens)}

    def decode_tensors(self, members: Mapping[str, Tensor]) -> Tensor:
        return members["patch.npy"]
