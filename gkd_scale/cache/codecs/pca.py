"""``pcaK``: the K leading principal components, rotated, as int8 with one scale a token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from gkd_scale.cache.codecs.arithmetic import clip, dequantize, principal, product, quantize, to_fp16
from gkd_scale.cache.codecs.base import Array, FittedCodec, Float32, tensor_of
from gkd_scale.cache.codecs.rotation import rotate
from gkd_scale.errors import ConfigError


class Pca(FittedCodec):
    """``state``: ``mean`` (C,), ``basis`` (K, C) with orthonormal rows.

    The rows are the leading components, already mixed by the rotation, so that all have about the same
    variance and one scale a token serves them all; to decode is one matrix product.
    """

    family, symbol, example = "pca", "K", "64"
    amount = r"[1-9]\d{0,4}"

    @property
    def name(self) -> str:
        return f"pca{len(self.state['basis'])}"

    @classmethod
    def suggestion(cls, dim: int) -> str:
        return f"pca{max(1, dim * 3 // 10)}"

    @staticmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:  # noqa: ARG004
        return {"patch.npy": int(amount), "patch_scale.npy": 1}

    @classmethod
    def fit(cls, mean: Array, covariance: Array, amount: str) -> FittedCodec:
        components = int(amount)
        if components > len(mean):
            raise ConfigError(
                f"codec 'pca{components}' wants more components than the {len(mean)} channels there are",
                f"give pca{max(1, round(0.3 * len(mean)) - 2)} or another number below {len(mean)}",
            )
        _, basis = principal(covariance)
        matrix = rotate(tensor_of(np.ascontiguousarray(basis[:components].T))).numpy().T
        return cls({"mean": np.asarray(mean, np.float32), "basis": np.ascontiguousarray(matrix)})

    def encode(self, tokens: Float32) -> dict[str, Array]:
        to_fp16(tokens)
        return quantize((tokens - self.state["mean"]) @ self.state["basis"].T)

    def decode_tensors(self, members: Mapping[str, Tensor]) -> Tensor:
        state = self.state_on(members["patch.npy"].device)
        return clip(product(dequantize(members), state["basis"]) + state["mean"])
