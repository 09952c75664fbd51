"""``int8``: rotated channels, then int8 with one scale a token."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gkd_scale.cache.codecs.arithmetic import clip, dequantize, quantize, to_fp16
from gkd_scale.cache.codecs.base import Array, Codec, Float32, tensor_of
from gkd_scale.cache.codecs.rotation import rotate


class Int8(Codec):
    """The L2 error of a token is at most √C/2 steps of 9/8 max|x|/127."""

    family = "int8"

    @staticmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:  # noqa: ARG004
        return {"patch.npy": dim, "patch_scale.npy": 1}

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        return quantize(rotate(tensor_of(tokens)).numpy())

    def decode_tensors(self, members: Mapping[str, Tensor]) -> Tensor:
        return clip(rotate(dequantize(members), inverse=True))
