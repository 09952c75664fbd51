"""Batches whose patch tokens are still encoded, to be decoded on the device that trains.

Fewer bytes are copied to the device, and the reading threads have no matrix products to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from gkd_scale.cache.codecs.base import Codec, tensor_of
from gkd_scale.cache.reader import EncodedSample
from gkd_scale.types import Batch, Features


class EncodedRows(NamedTuple):
    """Rows (K,) of a batch that one codec encoded, and the members of these, stacked (K, ...)."""

    codec: Codec
    rows: Tensor
    members: dict[str, Tensor]


@dataclass(frozen=True)
class EncodedBatch(Batch):
    """A batch without patch tokens; ``decode`` makes them from ``parts``.

    ``parts`` has the encoded rows of each teacher, none for one whose patch tokens are there.
    """

    parts: tuple[tuple[EncodedRows, ...], ...] = ()

    def decode(self) -> Batch:
        """The batch with fp16 patch tokens (B, N, C), on its device."""
        features = tuple(_decode(*pair) for pair in zip(self.teachers, self.parts, strict=True))
        values = {field.name: getattr(self, field.name) for field in fields(Batch)}
        return Batch(**{**values, "teacher": features[0], "others": features[1:]})


def _decode(features: Features, parts: tuple[EncodedRows, ...]) -> Features:
    if not parts:
        return features
    tokens = [part.codec.decode_tensors(part.members) for part in parts]
    patches = tokens[0]
    if len(tokens) > 1:
        patches = torch.cat(tokens)[torch.cat([part.rows for part in parts]).argsort()]
    return Features(features.cls, patches)


def stack(
    samples: Sequence[EncodedSample], empty: Callable[[tuple[int, ...], torch.dtype], Tensor]
) -> tuple[EncodedRows, ...]:
    """The members of a batch's samples, by codec, in tensors from ``empty(shape, dtype)``."""
    by_codec: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        by_codec.setdefault(id(sample.codec), []).append(row)
    parts = []
    for rows in by_codec.values():
        first = samples[rows[0]]
        members = {
            name: empty((len(rows), *array.shape), tensor_of(array).dtype)
            for name, array in first.members.items()
        }
        for place, row in enumerate(rows):
            for name, array in samples[row].members.items():
                members[name][place].numpy()[...] = array
        parts.append(EncodedRows(first.codec, torch.tensor(rows), members))
    return tuple(parts)
