"""The arguments of heads and methods, and what their numbers may be. Light: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd_scale.errors import ConfigError, nearest
from gkd_scale.ranges import Range

_COUNT = Range(ge=1, le=100_000, whole=True)
_WEIGHT = Range(ge=0, le=1e6)
_RATIO = Range(gt=0, le=1)
_TEMPERATURE = Range(gt=0, le=1e6)

HEADS: dict[str, dict[str, Range | None]] = {
    "linear": {},
    "fpn": {"width": _COUNT, "dropout": Range(ge=0, lt=1)},
    "mask2former": {
        "size": None,
        **dict.fromkeys(("width", "encoder_layers", "decoder_layers", "queries", "points"), _COUNT),
    },
}
"""Each head's arguments; None for one that is no number."""

METHODS: dict[str, dict[str, Range | None]] = {
    "vanilla-kd": {"weight": _WEIGHT},
    "cwd": {"weight": _WEIGHT, "temperature": _TEMPERATURE},
    "af-dcd": {
        **dict.fromkeys(("rebuild", "contrast", "logits"), _WEIGHT),
        "ratio": _RATIO,
        "groups": _COUNT,
    },
    "vitkd": {"shallow": _WEIGHT, "deep": _WEIGHT, "ratio": _RATIO},
    "proteus": {"weight": _WEIGHT, "ratio": _RATIO},
    "g2sd": {"weight": Range(ge=0, le=1)},  # the task's weight is what is left
}
"""Each method's arguments."""


def check_head(name: str, args: Mapping[str, Any]) -> None:
    """ConfigError for an argument that the head does not have, or whose number is outside its range."""
    _check("head", name, "--head-args", args, HEADS[name])


def check_method(name: str, args: Mapping[str, Any]) -> None:
    """ConfigError for an argument that the method does not have, or whose number is outside its range."""
    _check("method", name, "--method-args", args, METHODS[name])


def _check(
    what: str, name: str, flag: str, args: Mapping[str, Any], known: Mapping[str, Range | None]
) -> None:
    for key, value in args.items():
        if key not in known:
            hint = nearest(key, known) or (f"it takes {', '.join(known)}" if known else "it takes none")
            raise ConfigError(f"{what} '{name}' has no argument '{key}'", hint)
        bounds = known[key]
        if bounds is None or value is None:
            continue
        if not isinstance(value, (int, float)) or bounds.wrong(value):
            number = bounds.text() if bounds.whole else f"a number, {bounds.text()}"
            raise ConfigError(f"{flag} {key}={value}: {key} of '{name}' must be {number}")
