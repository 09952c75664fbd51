"""Objectives of stage 1 by name, one row each. Light: nothing here imports torch.

To add one: write ``gkd_scale/distill/objectives/NAME.py`` with an :class:`~.base.Objective`, its formula and
source in the docstring; add its row to :data:`OBJECTIVES`; test its loss against the formula.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gkd_scale.errors import ConfigError

if TYPE_CHECKING:
    from gkd_scale.distill.objectives.base import Objective, TeacherSpace
    from gkd_scale.models.students import Student


def _some_weight(cfg: Any) -> None:
    """ConfigError if every weight of the loss is 0."""
    weights = [name for name in vars(cfg.loss) if name.endswith("_weight")]
    if not any(getattr(cfg.loss, name) for name in weights):
        raise ConfigError(f"every weight of the loss is 0: {', '.join(weights)}", "nothing would be learned")


@dataclass(frozen=True)
class ObjectiveRow:
    """``title`` in the help; ``make`` is ``module:class``.

    ``make`` is called with the student, the space of its teacher (of each, if it can learn from ``several``),
    and by name those arguments of :func:`build_objective` that ``takes`` lists. ``passes``: how often an
    image goes through the student, forward and backward, by default. ``check(cfg)`` raises ConfigError for
    options that do not go together.
    """

    title: str
    make: str
    takes: tuple[str, ...] = ("seed",)
    passes: float = 1.0
    several: bool = False
    check: Callable[[Any], None] = lambda _: None


OBJECTIVES: dict[str, ObjectiveRow] = {
    "qsd": ObjectiveRow(
        "the teacher's tokens from the student's",
        "gkd_scale.distill.objectives.qsd:Distiller",
        takes=("loss", "qsd", "mask", "jitter", "seed"),
        several=True,
        check=_some_weight,
    ),
    "g2sd": ObjectiveRow("the generic stage of G2SD", "gkd_scale.distill.objectives.g2sd:G2sdGeneric"),
}
"""Rows by name; the first one is the default."""


def build_objective(
    name: str, student: Student, spaces: Sequence[TeacherSpace], args: Mapping[str, Any]
) -> Objective:
    """The objective ``name`` for a student that learns from the teachers of ``spaces``.

    ``args`` holds ``loss``, ``qsd`` and ``mask`` (sections of Stage1Config), ``jitter`` and ``seed``; an
    objective takes its own.
    """
    row = OBJECTIVES[name]
    make = pkgutil.resolve_name(row.make)
    objective: Objective = make(student, *spaces, **{name: args[name] for name in row.takes})
    return objective
