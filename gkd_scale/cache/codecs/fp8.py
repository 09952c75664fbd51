"""``fp8``: e4m3 with one scale a token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gkd_scale.cache.codecs.arithmetic import clip, divisor, scales, steps, to_fp16
from gkd_scale.cache.codecs.base import Array, Codec, Float32

FP8_MAX = 448.0


class Fp8(Codec):
    """Relative error at most 2^-4 down to 2^-15 of the largest value; stored as uint8."""

    family = "fp8"

    @staticmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:  # noqa: ARG004
        return {"patch.npy": dim, "patch_scale.npy": 1}

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        scale = scales(tokens, FP8_MAX)
        eighths = torch.from_numpy(tokens / divisor(scale)).to(torch.float8_e4m3fn)
        return {"patch.npy": eighths.view(torch.uint8).numpy(), "patch_scale.npy": scale}

    def decode_tensors(self, members: Mapping[str, Tensor]) -> Tensor:
        values = members["patch.npy"].view(torch.float8_e4m3fn).float()
        return clip(values * steps(members["patch_scale.npy"]))
