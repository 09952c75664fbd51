"""``bf16``: bfloat16, for comparison."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gkd_scale.cache.codecs.arithmetic import clip, to_fp16
from gkd_scale.cache.codecs.base import Array, Codec, Float32


class Bf16(Codec):
    """To nearest even: relative error at most 2^-8, with the bytes of fp16; stored as uint16."""

    family = "bf16"

    @staticmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:  # noqa: ARG004
        return {"patch.npy": 2 * dim}

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        bits = np.ascontiguousarray(tokens, np.float32).view(np.uint32)
        top = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return {"patch.npy": top.astype(np.uint16)}

    def decode_tensors(self, members: Mapping[str, Tensor]) -> Tensor:
        return clip(members["patch.npy"].view(torch.bfloat16).float())
