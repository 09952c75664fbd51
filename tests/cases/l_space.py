"""Kind L: a search space that is written as Ray's documentation writes it."""

from __future__ import annotations

from tests.cases.case import Bench, case
from tests.cases.d_two_commands import search

KIND = "L. Wrong cause or no next step"


@case(KIND, "`optim.lr: tune.loguniform(1e-4, 1e-2)` in a search space")
def ray_distribution(bench: Bench) -> object:
    return search(bench, space="optim.lr: tune.loguniform(1e-4, 1e-2)\nglobal_batch: 4\n")


@case(KIND, "`mask.ratio: np.random.rand()` in a search space")
def unknown_distribution(bench: Bench) -> object:
    return search(bench, space="mask.ratio: np.random.rand()\nglobal_batch: 4\n")
