"""Families of teachers, a row each: how one is loaded, and what one costs.

A teacher that is not timm's is a file with a function ``load`` and one row, whose key is how the names of
its teachers begin.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, NamedTuple

from gkd_scale.errors import ConfigError, ModelError
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.names import HF
from gkd_scale.types import LiveTeacher, Size

if TYPE_CHECKING:
    from gkd_scale.models.cost import Cost


class Family(NamedTuple):
    """Functions of a family of teachers, each as MODULE:FUNCTION, imported when it is needed.

    ``load(config, image_size, device)`` gives a :class:`~gkd_scale.types.LiveTeacher`. ``cost(config,
    image_size)`` gives a :class:`~gkd_scale.models.cost.Cost` without the weights; None if nothing counts it.
    Both raise ModelError.
    """

    load: str
    cost: str | None = None


TEACHERS = {
    "": Family("gkd_scale.models.teachers:load", "gkd_scale.models.cost:of_teacher"),
    HF: Family("gkd_scale.models.hf:load", "gkd_scale.models.hf:cost"),
}
"""Families by the prefix of their names, for example ``hf:``. A name without one of these is timm's."""


def load_teacher(config: TeacherConfig, image_size: Size, device: str = "auto") -> LiveTeacher:
    """The frozen teacher of ``config`` for images of (H, W) pixels; raises ConfigError or ModelError."""
    teacher: LiveTeacher = pkgutil.resolve_name(_family(config).load)(config, image_size, device)
    return teacher


def teacher_cost(config: TeacherConfig, image_size: Size) -> Cost:
    """What the teacher of ``config`` costs, an image; raises ConfigError or ModelError."""
    place = _family(config).cost
    if place is None:
        raise ModelError(f"nothing counts the arithmetic of '{config.name}'", "name a timm model of its size")
    cost: Cost = pkgutil.resolve_name(place)(config, image_size)
    return cost


def _family(config: TeacherConfig) -> Family:
    name = config.name
    if name is None:
        raise ConfigError("no teacher is named", "give --teacher NAME")
    return TEACHERS[max((prefix for prefix in TEACHERS if name.startswith(prefix)), key=len)]
