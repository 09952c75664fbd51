"""``tcB``: transform coding, B bits a value on average, most of them to the largest components."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd_scale.cache.codecs.arithmetic import clip, divisor, principal, product, scales, steps, to_fp16
from gkd_scale.cache.codecs.base import Array, FittedCodec, Float32, State, tensor_of

_MAX_BITS = 8
_STEPS = np.array([0, 1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308], np.float32)
_ERRORS = (1, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.0000869)
"""Optimal uniform quantiser of a unit Gaussian with 0 to 8 bits: its step and its error
(J. Max, "Quantizing for minimum distortion", 1960)."""


class TransformCode(FittedCodec):
    """Each principal component has a width of its own: as many bits as its variance deserves.

    ``state``: ``mean`` (C,), ``basis`` (C, C) by falling variance, ``sigma`` (C,) standard deviations,
    ``bits`` (C,) widths from 0 to 8, ``amount`` the B of its name. A token is divided by its gain (its
    root mean square in units of sigma, kept as the scale), so that tokens of unusual norm do not clip;
    what a uniform quantiser makes of each component is packed into one row of bits.
    """

    family, symbol, example = "tc", "B", "2.2"
    amount = r"[1-7](?:\.\d{1,2})?"

    def __init__(self, state: State) -> None:
        super().__init__(state)
        bits = state["bits"].astype(np.int64)
        self._components = int((bits > 0).sum())
        self._bits = bits[: self._components]
        self._starts = np.cumsum(self._bits) - self._bits
        self._step = _STEPS[self._bits] * state["sigma"][: self._components]
        self._middle = (2.0**self._bits / 2 - 0.5).astype(np.float32)

    @property
    def name(self) -> str:
        return f"tc{float(self.state['amount'][0]):.4g}"

    @classmethod
    def suggestion(cls, dim: int) -> str:  # noqa: ARG003
        return "tc2.1"

    @staticmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:
        return {"patch.npy": -(-round(float(amount) * dim) // 8), "patch_scale.npy": 1}

    @classmethod
    def fit(cls, mean: Array, covariance: Array, amount: str) -> FittedCodec:
        variances, basis = principal(covariance)
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
        z = (tokens - self.state["mean"]) @ self.state["basis"][: self._components].T
        sigma = np.maximum(self.state["sigma"][: self._components], np.float32(1e-30))
        gain = scales(np.sqrt(np.square(z / sigma).mean(axis=1, keepdims=True)), 1)
        levels = z / (self._step * divisor(gain)) + self._middle
        levels = np.rint(np.clip(levels, 0, 2 * self._middle)).astype(np.int32)
        component = np.repeat(np.arange(self._components), self._bits)  # of each packed bit
        shift = (np.arange(self._bits.sum()) - np.repeat(self._starts, self._bits)).astype(np.int32)
        octets = np.packbits((levels[:, component] >> shift) & 1, axis=1, bitorder="little")
        return {"patch.npy": octets, "patch_scale.npy": gain}

    def state_on(self, device: torch.device) -> dict[str, Tensor]:
        """The state, and of each component the two bytes of its bits, their shift and mask, step and middle.

        Float64 on the CPU, whose bits the caches of earlier versions were read with; float32 elsewhere.
        """
        if device not in self._tensors:
            wide = torch.float64 if device.type == "cpu" else torch.float32
            first = self._starts // 8
            tables: dict[str, Array] = {
                "mean": self.state["mean"],
                "basis": self.state["basis"][: self._components],
                "first": first,
                "second": np.minimum(first + 1, (int(self._bits.sum()) - 1) // 8),
                "shift": (self._starts % 8).astype(np.int32),
                "mask": ((1 << self._bits) - 1).astype(np.int32),
                "step": self._step,
                "middle": self._middle,
            }
            state = {key: tensor_of(table).to(device) for key, table in tables.items()}
            # Assigned when it is whole: several threads decode.
            self._tensors[device] = {
                **state,
                **{key: state[key].to(wide) for key in ("mean", "basis", "middle")},
            }
        return self._tensors[device]

    def decode_tensors(self, members: Mapping[str, Tensor]) -> Tensor:
        octets = members["patch.npy"].to(torch.int32)
        state = self.state_on(octets.device)
        pairs = octets[..., state["first"]] | (octets[..., state["second"]] << 8)
        levels = (pairs >> state["shift"]) & state["mask"]
        z = (levels - state["middle"]) * (state["step"] * steps(members["patch_scale.npy"]))
        return clip(product(z, state["basis"]) + state["mean"])


def _allocate(variances: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Bits of each component: one after the other where it lowers the error most. At least one bit."""
    gains = -np.diff(_ERRORS)  # falling: greedy is optimal
    worth = variances[:, None] * gains
    best = np.argsort(-worth, axis=None, kind="stable")[: max(1, min(total, worth.size))]
    bits = np.bincount(best // _MAX_BITS, minlength=len(variances))
    return np.sort(bits)[::-1]
