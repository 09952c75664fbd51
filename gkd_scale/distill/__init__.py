"""Stage 1: query-based soft distillation of a cached (or live) teacher into a student."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _Package(types.ModuleType):
    """``gkd_scale.distill`` is this package and the function of that name, :func:`gkd_scale.api.distill`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("gkd_scale.api").distill(*args, **options)


sys.modules[__name__].__class__ = _Package
