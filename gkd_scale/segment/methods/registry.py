"""Competing methods by name.

To add one: write ``gkd_scale/segment/methods/NAME.py`` with a :class:`~.base.Method`, its formula and
source in the docstring, name it in :data:`METHODS` and its arguments in ``segment/arguments.py``, and test
its loss against the formula.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from gkd_scale.models.backbone import Backbone
from gkd_scale.randomness import seed_of
from gkd_scale.segment.arguments import check_method
from gkd_scale.segment.methods.base import Guide, Method

METHODS = {
    "vanilla-kd": "gkd_scale.segment.methods.vanilla_kd:VanillaKd",
    "cwd": "gkd_scale.segment.methods.cwd:cwd",
    "af-dcd": "gkd_scale.segment.methods.af_dcd:AfDcd",
    "vitkd": "gkd_scale.segment.methods.vitkd:VitKd",
    "proteus": "gkd_scale.segment.methods.proteus:Proteus",
    "g2sd": "gkd_scale.segment.methods.g2sd:G2sd",
}
"""Method names to ``module:callable``, called with the student's backbone and the guide."""


def build_method(
    name: str, backbone: Backbone, guide: Guide, args: Mapping[str, Any] | None = None, *, seed: int = 0
) -> Method:
    """The method ``name`` for a student; its weights depend on ``seed`` alone.

    Raises ConfigError for an argument that is unknown or out of range, and where the guide lacks what the
    method needs.
    """
    module, _, attribute = METHODS[name].partition(":")
    make = getattr(importlib.import_module(module), attribute)
    check_method(name, args or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("stage2", "method", seed))
        method: Method = make(backbone, guide, **(args or {}))
    return method
