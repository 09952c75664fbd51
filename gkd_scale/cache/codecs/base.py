"""What every codec has: a name, its bytes, a way to arrays and a way back."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
State = dict[str, Float32]

STATE = "codec.safetensors"
"""File of a fitted codec's state, in the root of the cache."""


class Codec(ABC):
    """Patch tokens (N, C) to members of a sample and back.

    A name is ``family`` and an amount, a number that fits the regular expression ``amount`` (most codecs have
    none). In texts the amount is ``symbol``, and ``example`` is one.
    """

    family: ClassVar[str]
    amount: ClassVar[str] = ""
    symbol: ClassVar[str] = ""
    example: ClassVar[str] = ""

    verbatim: ClassVar[bool] = False
    """Whether ``patch.npy`` is what ``decode`` returns, so that a reader may read it into place."""

    @property
    def name(self) -> str:
        return self.family

    @classmethod
    def suggestion(cls, dim: int) -> str:  # noqa: ARG003
        """The name that ``plan`` shows for tokens of ``dim`` channels."""
        return cls.family

    @staticmethod
    @abstractmethod
    def token_bytes(amount: str, dim: int) -> dict[str, int]:
        """``{member suffix: bytes a token}`` for tokens of ``dim`` channels."""

    @abstractmethod
    def encode(self, tokens: Float32) -> dict[str, Array]:
        """Tokens (N, C) to ``{member suffix: array}``; ValueError for what it cannot hold."""

    @abstractmethod
    def decode_tensors(self, members: Mapping[str, Tensor]) -> Tensor:
        """The members of one sample, or of several stacked in front, to fp16 tokens (..., N, C).

        On the device of the members. On the CPU the bits are those of :meth:`decode`; other devices may round
        products of matrices in another way.
        """

    def decode(self, members: Mapping[str, Array]) -> Float16:
        """The members of one sample to tokens (N, C) as the trainer reads them."""
        tokens: Float16 = self.decode_tensors({k: tensor_of(v) for k, v in members.items()}).numpy()
        return tokens


class FittedCodec(Codec):
    """A codec with a ``state``, fitted to the tokens of a teacher."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._tensors: dict[torch.device, dict[str, Tensor]] = {}

    @classmethod
    @abstractmethod
    def fit(cls, mean: Array, covariance: Array, amount: str) -> FittedCodec:
        """The codec for tokens of this mean (C,) and covariance (C, C); ConfigError if that is impossible."""

    def state_on(self, device: torch.device) -> dict[str, Tensor]:
        """The state as tensors on ``device``, copied there once."""
        if device not in self._tensors:
            self._tensors[device] = {key: tensor_of(value).to(device) for key, value in self.state.items()}
        return self._tensors[device]


def tensor_of(array: Array) -> Tensor:
    """A tensor on the memory of ``array``, or on a copy if that is read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def state_bytes(codec: Codec) -> bytes | None:
    """The content of ``codec.safetensors``; None for a codec without a state."""
    if not isinstance(codec, FittedCodec):
        return None
    from safetensors.numpy import save

    return bytes(save(codec.state))


def state_hash(data: bytes | None) -> str:
    """SHA-256 of a codec's state; the empty string for None."""
    return "" if data is None else hashlib.sha256(data).hexdigest()
