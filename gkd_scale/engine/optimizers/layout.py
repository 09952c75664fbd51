"""Which parts of which parameters a tensor of the optimizer holds.

Without ZeRO the optimizer steps on whole parameters. Under ZeRO it steps on flat tensors: each holds, for a
group of parameters, the parts that are this rank's. Elementwise steps need no layout; norms and
matrices of one parameter do. Every rank calls the same methods in the same order: they are collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class ParameterPart(NamedTuple):
    """``length`` elements of parameter number ``owner`` of its group, from its element ``start``; they lie at
    ``offset`` of the flat tensor.
    """

    owner: int
    start: int
    offset: int
    length: int


class Whole:
    """The layout of a tensor that is one whole parameter."""

    def views(self, tensor: Tensor) -> list[Tensor]:
        """The parts of ``tensor``."""
        return [tensor]

    def totals(self, values: Tensor) -> Tensor:
        """For each part the sum of ``values`` (..., parts) over all parts of its parameter, on all ranks."""
        return values

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """The whole parameters that ``tensor`` has parts of, in their shapes."""
        return [tensor]

    def take(self, tensor: Tensor, matrices: Sequence[Tensor]) -> None:
        """Write this rank's parts of ``matrices`` into ``tensor``."""
        tensor.copy_(matrices[0])


@dataclass(frozen=True)
class Shards(Whole):
    """The layout of a flat tensor. ``shapes``: of all parameters of its group, ``parts``: what this rank has
    of them, ``device``: where collectives run.
    """

    shapes: list[torch.Size]
    parts: list[ParameterPart]
    device: torch.device

    def views(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.narrow(0, part.offset, part.length) for part in self.parts]

    def totals(self, values: Tensor) -> Tensor:
        owners = torch.tensor([part.owner for part in self.parts], dtype=torch.int64, device=values.device)
        sums = values.new_zeros(*values.shape[:-1], len(self.shapes)).index_add_(-1, owners, values)
        return self._all_reduced(sums).index_select(-1, owners)

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        sizes = [shape.numel() for shape in self.shapes]
        whole = tensor.new_zeros(sum(sizes))
        pieces = whole.split(sizes)
        for part, view in zip(self.parts, self.views(tensor), strict=True):
            pieces[part.owner].narrow(0, part.start, part.length).copy_(view)
        sums = self._all_reduced(whole).split(sizes)  # the others have zeros there: the sum is exact
        return [piece.view(shape) for piece, shape in zip(sums, self.shapes, strict=True)]

    def take(self, tensor: Tensor, matrices: Sequence[Tensor]) -> None:
        for part, view in zip(self.parts, self.views(tensor), strict=True):
            view.copy_(matrices[part.owner].flatten().narrow(0, part.start, part.length))

    def _all_reduced(self, values: Tensor) -> Tensor:
        on_device = values.to(self.device)
        dist.all_reduce(on_device)
        return on_device.to(values.device)


WHOLE = Whole()
