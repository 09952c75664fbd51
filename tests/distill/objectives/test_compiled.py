"""``--compile``: student and losses are one graph, with the losses and gradients of the eager ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from gkd_scale.distill.config import LossConfig
from gkd_scale.distill.objectives.base import Objective, TeacherSpace
from gkd_scale.distill.objectives.g2sd import G2sdGeneric
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.models.students import load_student
from gkd_scale.types import Batch
from tests.conftest import TINY
from tests.distill.objectives.test_qsd import batch, distiller

TWO = (TeacherSpace(20, (2, 3), name="a"), TeacherSpace(20, (2, 3), name="b", weight=2.0))


def student() -> Any:
    torch.manual_seed(1)
    return load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "the default": lambda: Distiller(student(), TeacherSpace(20, (2, 3))),
    "the paper's": distiller,
    "two teachers": lambda: Distiller(student(), *TWO, loss=LossConfig(mask_weight=1.0, teacher_drop=0.3)),
    "g2sd": lambda: G2sdGeneric(student(), TeacherSpace(20, (2, 3))),
    "convolutional": lambda: distiller("test_resnet"),
}
FAST = ("the default", "two teachers")
"""The two have what the others have, but for the families of networks. Each takes ten seconds or more."""


def of(objective: Objective, inputs: Batch) -> Batch:
    others = () if objective.draws.teachers == 1 else (inputs.teacher,)
    return objective.draws.add(replace(inputs, others=others))


def results(objective: Objective, inputs: Batch) -> list[torch.Tensor]:
    """Losses and gradients."""
    objective.zero_grad()
    losses = objective(of(objective, inputs))
    losses["loss"].backward()
    gradients = [p.grad.clone() for p in objective.parameters() if p.grad is not None]
    return [*(value.detach() for value in losses.values()), *gradients]


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES if name not in FAST)]
)
def test_one_graph_gives_the_same_losses_and_gradients(name: str) -> None:
    """No graph break. A kernel of its own is not compiled here, which takes minutes on a CPU."""
    eager, graph = OBJECTIVES[name](), OBJECTIVES[name]()
    torch._dynamo.reset()
    counters.clear()
    graph.compile_losses(backend="aot_eager")
    for one, other in zip(results(eager, batch()), results(graph, batch()), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["stats"]["unique_graphs"] == 1
    assert list(graph.state_dict()) == list(eager.state_dict())
