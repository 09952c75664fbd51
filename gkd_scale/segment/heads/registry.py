"""Heads by name.

To add one: write ``gkd_scale/segment/heads/NAME.py`` with a :class:`~.base.SegHead`, name it in
:data:`HEADS` and its arguments in ``segment/arguments.py``, and test its shapes and gradient.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gkd_scale.errors import ConfigError, nearest
from gkd_scale.randomness import seed_of
from gkd_scale.segment.arguments import check_head
from gkd_scale.segment.heads.base import SegHead

HEADS = {
    "fpn": "gkd_scale.segment.heads.fpn:FpnHead",
    "linear": "gkd_scale.segment.heads.linear:LinearHead",
    "mask2former": "gkd_scale.segment.heads.mask2former:Mask2FormerHead",
}
"""Head names to ``module:class``."""


def build_head(
    name: str, channels: Sequence[int], classes: int, args: Mapping[str, Any] | None = None, *, seed: int = 0
) -> SegHead:
    """The head ``name`` on maps of ``channels`` for ``classes``; its weights depend on ``seed`` alone.

    Raises ConfigError for an unknown name or argument, naming the nearest.
    """
    if name not in HEADS:
        raise ConfigError(
            f"there is no head '{name}'", nearest(name, HEADS) or f"heads: {', '.join(sorted(HEADS))}"
        )
    module, _, attribute = HEADS[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    check_head(name, args or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("stage2", "head", seed))
        try:
            head: SegHead = cls(channels, classes, **(args or {}))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"head '{name}' cannot be built with {dict(args or {})}: {error}") from None
    return head
