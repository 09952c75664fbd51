"""Competing methods by name.

To add one: write ``gkd_scale/segment/methods/NAME.py`` with a :class:`~.base.Method`, its formula and
source in the docstring, name it in :data:`METHODS`, and test its loss against the formula.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from gkd_scale.errors import ConfigError, nearest
from gkd_scale.models.backbone import Backbone
from gkd_scale.randomness import seed_of
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
    known = [key for key in inspect.signature(make).parameters if key not in ("backbone", "guide")]
    for key, value in (args or {}).items():
        if key not in known:
            hint = nearest(key, known) or f"it takes {', '.join(known)}"
            raise ConfigError(f"method '{name}' has no argument '{key}'", hint)
        if wanted := _wanted(name, key, value):
            raise ConfigError(f"--method-args {key}={value}: {key} of '{name}' must be {wanted}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("stage2", "method", seed))
        method: Method = make(backbone, guide, **(args or {}))
    return method


def _wanted(method: str, key: str, value: Any) -> str:
    """What an argument must be, in words, where ``value`` is not; "" where it is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if key == "groups":
        return "" if number and isinstance(value, int) and value > 0 else "a whole number of at least 1"
    if key == "ratio":
        return "" if number and 0 < value <= 1 else "a number in (0, 1]"
    if method == "g2sd":  # the task's weight is what is left
        return "" if number and 0 <= value <= 1 else "a number in [0, 1]"
    if key == "temperature":
        return "" if number and value > 0 else "a number above 0"
    return "" if number and value >= 0 else "a number of at least 0"
