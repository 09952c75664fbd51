"""The single-stage methods that GKD is compared with, one row each. Light: importing it does not load torch.

To add one: write ``gkd_scale/segment/methods/NAME.py`` with a :class:`~.base.Method`, its formula and source
in the docstring; add its row to :data:`METHODS`; test its loss against the formula. Code outside of this
package adds a row in the same way, before options are read. Flags, the benchmark's steps and its table
use nothing but the row of a method.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gkd_scale.ranges import Range
from gkd_scale.segment import arguments
from gkd_scale.segment.arguments import COUNT, RATIO, TEMPERATURE, WEIGHT, Arguments

if TYPE_CHECKING:
    from gkd_scale.models.backbone import Backbone
    from gkd_scale.segment.methods.base import Method, MethodTeacher


@dataclass(frozen=True)
class MethodRow:
    """``title`` in tables; ``make`` is ``module:callable``, None for a method without a loss of its own.

    ``make`` is called with the student's backbone, a MethodTeacher and ``arguments``. ``passes``: how often
    an image goes through the student, forward and backward. ``features``: the method needs the teacher's
    features (--teacher). ``logits``: it needs, or can use, those of a head that was trained on the teacher
    (--teacher-head). ``generic``: the objective of stage 1 whose run is its --backbone.
    """

    title: str
    make: str | None = None
    arguments: Arguments = field(default_factory=dict)
    passes: float = 1.0
    features: bool = True
    logits: Literal["needed", "used"] | None = None
    generic: str | None = None


METHODS: dict[str, MethodRow] = {
    "none": MethodRow("student without distillation", features=False),
    "vanilla-kd": MethodRow(
        "Vanilla KD", "gkd_scale.segment.methods.vanilla_kd:VanillaKd", {"weight": WEIGHT}
    ),
    "cwd": MethodRow(
        "CWD",
        "gkd_scale.segment.methods.cwd:cwd",
        {"weight": WEIGHT, "temperature": TEMPERATURE},
        logits="used",
    ),
    "af-dcd": MethodRow(
        "Af-DCD",
        "gkd_scale.segment.methods.af_dcd:AfDcd",
        {**dict.fromkeys(("rebuild", "contrast", "logits"), WEIGHT), "ratio": RATIO, "groups": COUNT},
        logits="used",
    ),
    "vitkd": MethodRow(
        "ViTKD",
        "gkd_scale.segment.methods.vitkd:VitKd",
        {"shallow": WEIGHT, "deep": WEIGHT, "ratio": RATIO},
    ),
    "proteus": MethodRow(
        "Proteus",
        "gkd_scale.segment.methods.proteus:Proteus",
        {"weight": WEIGHT, "ratio": RATIO},
        passes=2.0,
    ),
    "g2sd": MethodRow(
        "G2SD",
        "gkd_scale.segment.methods.g2sd:G2sd",
        {"weight": Range(ge=0, le=1)},  # the rest is the task's weight
        features=False,
        logits="needed",
        generic="g2sd",
    ),
}
"""Rows by name, in the order of the benchmark's table."""


def check_method(name: str, args: Mapping[str, Any]) -> None:
    """ConfigError for an argument that the method does not have, or whose number is outside its range."""
    arguments.check("method", name, args, METHODS[name].arguments)


def build_method(
    name: str,
    backbone: Backbone,
    teacher: MethodTeacher,
    args: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Method:
    """The method ``name`` for a student; its weights depend on ``seed`` alone.

    Raises ConfigError for an argument that is unknown or out of range, and if the teacher lacks what the
    method needs.
    """
    import torch

    from gkd_scale.randomness import seed_of

    row = METHODS[name]
    assert row.make is not None, f"'{name}' trains by the task's loss alone"
    make = pkgutil.resolve_name(row.make)
    check_method(name, args or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("stage2", "method", seed))
        method: Method = make(backbone, teacher, **(args or {}))
    return method
