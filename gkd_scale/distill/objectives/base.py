"""An objective of stage 1: a student and all that is trained beside it; a batch in, losses out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.distill.draws import Draws
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.students import Student
from gkd_scale.models.tensor_files import StateDict, below
from gkd_scale.types import Batch, Drawn, Grid


@dataclass(frozen=True)
class TeacherSpace:
    """The space in which a student is compared with a teacher: ``dim`` Ct, ``grid``, conditioned tokens.

    ``name`` and ``weight`` tell it from other teachers of the same student.
    """

    dim: int
    grid: Grid
    conditioning: Conditioning = field(default_factory=Conditioning)
    name: str = ""
    weight: float = 1.0


class Objective(nn.Module, ABC):
    """``draws``: the random numbers that ``forward`` finds in a batch; the loader draws them."""

    draws: Draws

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of one micro batch by name, each a mean over the batch; the loop minimises ``"loss"``."""
        return self.losses(*self.inputs(batch))

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What ``losses`` takes of a batch, on this module's device."""

    losses: Callable[..., dict[str, Tensor]]
    """``inputs`` to losses: the student's passes and all that is computed from them, tensors alone."""

    def compile_losses(self, **options: Any) -> None:
        """Compile ``losses``, forward and backward, as one graph; parameters keep their names."""
        self.losses = torch.compile(self.losses, **options)

    @cached_property
    def prefix(self) -> str:
        """The prefix of the student's network in the names of this module's parameters."""
        return next(f"{name}." for name, module in self.named_modules() if module is self.student.net)

    def split(self, state: StateDict) -> tuple[StateDict, StateDict]:
        """The ``state`` dict of this module, split into that of the student's network and the rest."""
        prefix = self.prefix
        rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
        return below(state, prefix), rest


def draws_of(batch: Batch) -> Drawn:
    """The draws for ``batch``, made when it was loaded."""
    assert batch.drawn is not None, "batches(start, stop, objective.draws) draws masks, draws.add(batch) too"
    return batch.drawn
