"""Arguments of heads and methods: the ranges that their rows share, and the check. Light: without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd_scale.errors import ConfigError, nearest
from gkd_scale.ranges import Range

COUNT = Range(ge=1, le=100_000, whole=True)
WEIGHT = Range(ge=0, le=1e6)
RATIO = Range(gt=0, le=1)
TEMPERATURE = Range(gt=0, le=1e6)

Arguments = Mapping[str, Range | None]
"""Names of arguments to the range of their numbers; None for an argument that is no number."""


def check(what: str, name: str, args: Mapping[str, Any], options: Arguments) -> None:
    """ConfigError for an argument that ``name`` does not have, or whose number is outside its range.

    ``what`` is "head" or "method"; ``args`` come from --head-args or --method-args.
    """
    for key, value in args.items():
        if key not in options:
            hint = nearest(key, options) or (f"it takes {', '.join(options)}" if options else "it takes none")
            raise ConfigError(f"{what} '{name}' has no argument '{key}'", hint)
        bounds = options[key]
        if bounds is None or value is None:
            continue
        if not isinstance(value, (int, float)) or bounds.wrong(value):
            number = bounds.text() if bounds.whole else f"a number, {bounds.text()}"
            raise ConfigError(f"--{what}-args {key}={value}: {key} of '{name}' must be {number}")
