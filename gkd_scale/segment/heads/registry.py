"""Heads by name, one row each. Light: importing it does not load torch.

To add one: write ``gkd_scale/segment/heads/NAME.py`` with a :class:`~.base.SegHead`, add its row to
:data:`HEADS`, and test its shapes and gradient.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gkd_scale.errors import ConfigError, nearest
from gkd_scale.ranges import Range
from gkd_scale.segment import arguments
from gkd_scale.segment.arguments import COUNT, Arguments

if TYPE_CHECKING:
    from gkd_scale.segment.heads.base import SegHead


@dataclass(frozen=True)
class HeadRow:
    """``make`` is ``module:class``, called with channels, classes and ``arguments``.

    ``lr``: the peak learning rate unless the user gives one. ``any_size``: its graph, once exported, takes
    images of any size.
    """

    make: str
    arguments: Arguments = field(default_factory=dict)
    lr: float = 3e-3
    any_size: bool = True


HEADS: dict[str, HeadRow] = {
    "linear": HeadRow("gkd_scale.segment.heads.linear:LinearHead", lr=5e-3),
    "fpn": HeadRow("gkd_scale.segment.heads.fpn:FpnHead", {"width": COUNT, "dropout": Range(ge=0, lt=1)}),
    "mask2former": HeadRow(
        "gkd_scale.segment.heads.mask2former:Mask2FormerHead",
        {
            "size": None,
            **dict.fromkeys(("width", "encoder_layers", "decoder_layers", "queries", "points"), COUNT),
        },
        lr=1e-4,
        any_size=False,
    ),
}
"""Rows by name; the first one is the default."""


def check_head(name: str, args: Mapping[str, Any]) -> None:
    """ConfigError for an argument that the head does not have, or whose number is outside its range."""
    arguments.check("head", name, args, HEADS[name].arguments)


def build_head(
    name: str, channels: Sequence[int], classes: int, args: Mapping[str, Any] | None = None, *, seed: int = 0
) -> SegHead:
    """The head ``name`` on maps of ``channels`` for ``classes``; its weights depend on ``seed`` alone.

    Raises ConfigError for an unknown name or argument, naming the nearest.
    """
    import torch

    from gkd_scale.randomness import seed_of

    if name not in HEADS:
        raise ConfigError(
            f"there is no head '{name}'", nearest(name, HEADS) or f"heads: {', '.join(sorted(HEADS))}"
        )
    make = pkgutil.resolve_name(HEADS[name].make)
    check_head(name, args or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("stage2", "head", seed))
        try:
            head: SegHead = make(channels, classes, **(args or {}))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"head '{name}' cannot be built with {dict(args or {})}: {error}") from None
    return head
