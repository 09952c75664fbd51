"""Search spaces: YAML of stage-1 options, each fixed or drawn.

::

    optim.lr: loguniform(1e-4, 5e-3)
    qsd.init: choice(published, zero-query)
    mask.ratio: 0.5

A key is the dotted path of any stage-1 option (``deepspeed launchers/stage1.py --help``). A value is what
stage 1 takes, or a distribution: ``uniform(a, b)``, ``loguniform(a, b)``, ``randint(a, b)`` and
``lograndint(a, b)`` (both ends included), ``choice(x, y, ...)``. Both ends of a range, a value between them
and every choice are built as a stage-1 configuration when the file is read, so a typo, an impossible value or
a fraction for an option of whole numbers is one error before anything starts.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gkd_scale import config, documents
from gkd_scale.distill.config import Stage1Config
from gkd_scale.errors import ConfigError, nearest

RANGES = ("uniform", "loguniform", "randint", "lograndint")
KINDS = (*RANGES, "choice")
HINT = "write a value, or uniform, loguniform, randint or lograndint(low, high), or choice(x, y, ...)"
OWN = (
    *("out", "steps", "epochs", "save_every", "keep", "keep_every", "dry_run", "world"),
    *("cache", "mirror", "mirror_gb"),
)
"""Options that the search sets itself."""
SPACES = Path(__file__).resolve().parents[2] / "tuning/spaces"

_CALL = re.compile(r"\s*((?:[A-Za-z_]\w*\.)*)([A-Za-z_]\w*)\s*\((.*)\)\s*", re.DOTALL)
_BETWEEN = (5**0.5 - 1) / 2
"""The position in a range at which a value is tried; by chance it is near no whole number."""


@dataclass(frozen=True)
class Dimension:
    """One searched option. ``values`` are (low, high) of a range, ends included, or the choices."""

    kind: str
    values: tuple[Any, ...]

    def text(self) -> str:
        """Its text in the YAML."""
        return f"{self.kind}({', '.join(map(str, self.values))})"


@dataclass(frozen=True)
class Space:
    """``fixed`` and ``searched`` options by dotted path."""

    path: Path
    fixed: dict[str, Any]
    searched: dict[str, Dimension]

    def configure(self, base: Mapping[str, Any], params: Mapping[str, Any]) -> Stage1Config:
        """Stage 1's configuration: ``base``, then what is fixed, then ``params`` (dotted paths)."""
        settings = config.merge(base, config.from_dotted(self.fixed))
        return config.build(Stage1Config, config.merge(settings, config.from_dotted(params)), str(self.path))


def read(name: str | Path, base: Mapping[str, Any]) -> Space:
    """The space in a file, or the bundled one of that name, checked on top of ``base``; ConfigError."""
    path = find(name)
    space = Space(path, {}, {})
    for key, value in _flatten(path, config.read_yaml(path)).items():
        if key in OWN:
            raise ConfigError(f"{path} sets '{key}', which the search decides", f"remove '{key}' from {path}")
        dimension = parse(value, f"{path}: '{key}'")
        if dimension is None:
            space.fixed[key] = value
        else:
            space.searched[key] = dimension
    return _check(space, base)


def find(name: str | Path) -> Path:
    """``name`` as a path, or the bundled space of that name; ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    spaces = {file.name: file for file in SPACES.glob("*.yaml")}
    if path.name == str(name) and path.name in spaces:
        return spaces[path.name]
    raise ConfigError(
        f"there is no search space {name}",
        nearest(path.name, spaces) or f"bundled: {', '.join(sorted(spaces))}",
    )


def parse(value: Any, where: str) -> Dimension | None:
    """A distribution from its text; None for a plain value. ConfigError for a malformed one."""
    match = _CALL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    library, kind, text = match.groups()
    if kind not in KINDS or library:
        hint = nearest(kind, KINDS) or HINT
        if kind in KINDS:
            text = re.sub(r"^\s*\[(.*)\]\s*$", r"\1", text)
            ends = ", whose ends are both included" if kind.endswith("randint") else ""
            hint = f"write {kind}({text}){ends}, without '{library}'"
        raise ConfigError(f"{where} is drawn from '{library}{kind}'", hint)
    try:
        values = tuple(documents.parse_yaml(f"[{text}]"))
    except ConfigError:
        raise ConfigError(f"{where} is {value!r}", f"write {kind}(...), values between commas") from None
    if kind in RANGES:
        _check_range(kind, values, where)
    elif not values:
        raise ConfigError(f"{where} has no choice", "write choice(x, y)")
    elif len(values) == 1 and isinstance(values[0], list):
        raise ConfigError(
            f"{where} has one choice, the list {values[0]}", "write choice(x, y), without brackets"
        )
    return Dimension(kind, values)


def _check_range(kind: str, values: tuple[Any, ...], where: str) -> None:
    types: tuple[type, ...] = (int,) if kind.endswith("randint") else (int, float)
    numbers: list[Any] = [v for v in values if isinstance(v, types) and not isinstance(v, bool)]
    if len(numbers) != 2 or len(values) != 2:
        what = "whole numbers" if kind.endswith("randint") else "numbers"
        raise ConfigError(
            f"{where}: {kind} takes two {what}, not {', '.join(map(str, values))}", "low, then high"
        )
    low, high = numbers
    if not low < high or (kind.startswith("log") and low <= 0):
        rule = "0 < low < high" if kind.startswith("log") else "low < high"
        raise ConfigError(f"{where}: {kind}({low}, {high}) is no range", f"it needs {rule}")


def _flatten(path: Path, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted paths; ConfigError if a key is there twice, nested and dotted."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if str(key).endswith(")"):
            raise ConfigError(
                f"{path}: a comma in braces cuts off '{key}'", "quote it: {lr: 'loguniform(1e-4, 1e-2)'}"
            )
        below = _flatten(path, value, f"{name}.") if isinstance(value, Mapping) else {name: value}
        if twice := flat.keys() & below.keys():
            raise ConfigError(f"{path}: the key '{min(twice)}' is there twice", "keep one of them")
        flat |= below
    return flat


def _check(space: Space, base: Mapping[str, Any]) -> Space:
    """The space, with each value as the type its option has; ConfigError if stage 1 refuses one."""
    try:
        space.configure(base, {})
    except ConfigError as error:
        raise ConfigError(_message(space, error), f"{error.hint}; or {HINT}") from None
    if not space.searched:
        raise ConfigError(
            f"{space.path} searches nothing", "give an option a range, e.g. loguniform(1e-4, 5e-3)"
        )

    def convert(key: str, value: Any) -> Any:
        try:
            leaf = _leaf(space.configure(base, {key: value}), key)
            return value if isinstance(leaf, list) and not isinstance(value, list) else leaf
        except ConfigError as error:
            raise ConfigError(
                f"{_message(space, error)} (a value of {space.searched[key].text()})", error.hint
            ) from None

    options = {}
    for key, dimension in space.searched.items():
        values = tuple(convert(key, value) for value in dimension.values)
        _require_fractions(space, base, key, dimension)
        options[key] = replace(dimension, values=values if dimension.kind == "choice" else dimension.values)
    return replace(space, searched=options)


def _message(space: Space, error: ConfigError) -> str:
    """The message of an error, with the space's file."""
    return error.message if str(space.path) in error.message else f"{space.path}: {error.message}"


def between(dimension: Dimension) -> list[float]:
    """A value inside a range of all numbers; nothing for whole numbers and choices."""
    if dimension.kind not in ("uniform", "loguniform"):
        return []
    low, high = dimension.values
    return [low + _BETWEEN * (high - low)]


def _require_fractions(space: Space, base: Mapping[str, Any], key: str, dimension: Dimension) -> None:
    """ConfigError if an option that takes only whole numbers is drawn from all numbers."""
    try:
        for value in between(dimension):
            space.configure(base, {key: value})
    except ConfigError as error:
        low, high = dimension.values
        kind = f"{'log' if dimension.kind == 'loguniform' else ''}randint"
        raise ConfigError(
            f"{_message(space, error)} (a value of {dimension.text()})",
            f"for whole numbers write {kind}({math.ceil(low)}, {math.floor(high)}), or choice(...)",
        ) from None


def _leaf(cfg: Stage1Config, key: str) -> Any:
    return functools.reduce(operator.getitem, key.split("."), config.to_dict(cfg))


def defaults(
    space: Space, base: Mapping[str, Any], default_lr: Callable[[Stage1Config, int], float]
) -> dict[str, Any]:
    """The defaults of stage 1 for the searched options, without those that lie outside the space.

    ``default_lr(config, global_batch)`` is stage 1's rule for a learning rate that is not given.
    """
    cfg = space.configure(base, {})
    inside_space = {}
    for key, dimension in space.searched.items():
        try:
            value = _leaf(cfg, key)
        except KeyError:
            value = None
        if key == "optim.lr" and value is None:
            value = default_lr(cfg, cfg.run.global_batch or 32)
        is_range = dimension.kind in RANGES and value is not None
        low, high = dimension.values[0], dimension.values[-1]
        if low <= value <= high if is_range else value in dimension.values:
            inside_space[key] = value
    return inside_space


_MUTABLE = ("optim.", "loss.", "mask.", "drop_path")


def may_change(key: str) -> bool:
    """Whether an option may change in the middle of a run: what population-based training may search.

    Another optimizer has other moments.
    """
    return key.startswith(_MUTABLE) and key != "optim.name"
