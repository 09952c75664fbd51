"""Configuration: one dataclass a command, filled from YAML, then from flags.

A command declares its options once, as dataclass fields::

    @dataclass
    class Stage1Config:
        student: str = option("demo", "timm name of the student")
        optim: OptimConfig = section(OptimConfig)

From that come the flags (``--student``, ``--optim.lr``; a field may add a short alias such as
``--lr``), the YAML keys, the help text, and the file ``config.yaml`` beside every run. Flags, YAML and
the tuner go through one path, :func:`build`, which refuses unknown keys and wrong types and says
what was probably meant. Types are checked by pydantic.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gkd_scale.errors import ConfigError, nearest

T = TypeVar("T")
_MISSING = dataclasses.MISSING


def option(
    default: Any = _MISSING,
    help: str = "",
    *,
    flag: str | None = None,
    positional: bool = False,
    choices: Sequence[str] | None = None,
    metavar: str | tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field that is also a flag. ``flag`` adds an alias, e.g. ``--lr`` for ``--optim.lr``."""
    metadata = {"help": help, "flag": flag, "positional": positional, "choices": choices, "metavar": metavar}
    if isinstance(default, (list, dict)):
        value = default
        return dataclasses.field(default_factory=lambda: type(value)(value), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type[T]) -> T:
    """A nested group of options; its flags carry the field's name as a prefix."""
    section_field: Any = dataclasses.field(default_factory=cls)
    return typing.cast(T, section_field)


# ------------------------------------------------------------------------------------- building


def build(cls: type[T], values: Mapping[str, Any], where: str = "the configuration") -> T:
    """``values`` (nested mappings) to an instance of ``cls``; raises ConfigError, naming ``where``."""
    from pydantic import TypeAdapter, ValidationError

    _refuse_unknown(cls, values, where)
    try:
        return TypeAdapter(cls).validate_python(_one_is_a_list(cls, values))
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] in ("missing", "missing_argument"):
                lines.append(f"'{key}' is required ({_usage(cls, key)})")
            else:
                message = item["msg"].removeprefix("Value error, ")
                lines.append(f"'{key}' is {item['input']!r}: {message}")
        raise ConfigError(f"{where}: " + "; ".join(lines), "see --help for what each option takes") from None


def _one_is_a_list(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with a single value, where any number of them is expected, as a list of one."""
    hints = {name: _strip_optional(hint) for name, hint in _types(cls).items()}

    def listed(hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return _one_is_a_list(typing.cast(type, hint), value)
        one = _any_number(hint) and not isinstance(value, (list, tuple, type(None)))
        return [value] if one else value

    return {key: listed(hints[key], value) for key, value in values.items()}


def _any_number(hint: Any) -> bool:
    return typing.get_origin(hint) is list or Ellipsis in typing.get_args(hint)


def from_dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"optim.lr": 1}`` to ``{"optim": {"lr": 1}}``."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, mappings merged key by key."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is missing, not YAML, or not a mapping."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}", "check the path given to --config") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}", "mend the file") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path} holds a {type(loaded).__name__}, not a mapping", "write 'key: value' lines"
        )
    return loaded


def to_dict(config: Any) -> dict[str, Any]:
    """The resolved config as plain YAML types."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """The resolved config as YAML, readable by ``--config``."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


# --------------------------------------------------------------------------------------- parsing


def parse(cls: type[T], argv: Sequence[str], *, prog: str, description: str, examples: str = "") -> T:
    """Flags over ``--config FILE`` over defaults. ``--help`` exits 0; a mistake raises ConfigError."""
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with any of these options")
    # The deepspeed launcher passes --local_rank; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    _add_arguments(parser, cls, "")
    known, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        first = unknown[0].split("=")[0]
        what = "flag" if first.startswith("-") else "argument"
        raise ConfigError(f"{prog}: unknown {what} '{first}'", nearest(first, flags) or "see --help")
    given = vars(known)
    given.pop("local_rank", None)
    config_file = given.pop("config", None)
    base = read_yaml(config_file) if config_file else {}
    if config_file:
        _refuse_unknown(cls, base, str(config_file))
    return build(cls, merge(base, from_dotted(given)), str(config_file) if config_file else prog)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{self.prog}: {message}", "see --help")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(110, _terminal_width()))


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _strip_optional(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return inner[0] if len(inner) == 1 else str
    return hint


def _add_arguments(parser: Any, cls: type, prefix: str) -> None:
    hints = _types(cls)
    for field in dataclasses.fields(cls):
        hint = _strip_optional(hints[field.name])
        if dataclasses.is_dataclass(hint):
            title = (hint.__doc__ or field.name).strip().splitlines()[0]
            _add_arguments(
                parser.add_argument_group(title), typing.cast(type, hint), f"{prefix}{field.name}."
            )
        else:
            _add_argument(parser, field, hint, prefix)


def _add_argument(parser: Any, field: dataclasses.Field[Any], hint: Any, prefix: str) -> None:
    meta = field.metadata
    dest = f"{prefix}{field.name}"
    help_text = meta.get("help", "").replace("%", "%%")
    default = field.default if field.default_factory is _MISSING else field.default_factory()
    if default not in (_MISSING, None, "", [], {}) and not meta.get("positional"):
        shown = " ".join(map(str, default)) if isinstance(default, (tuple, list)) else default
        help_text += f" (default: {shown})"
    kwargs: dict[str, Any] = {"dest": dest, "help": help_text, "default": argparse.SUPPRESS}
    if meta.get("choices"):
        kwargs["choices"] = list(meta["choices"])
    origin = typing.get_origin(hint)
    metavar = meta.get("metavar")
    if meta.get("positional"):
        kwargs.pop("dest")
        if origin is list:
            kwargs["nargs"] = "+"
        elif default is not _MISSING:
            kwargs["nargs"] = "?"
        parser.add_argument(dest, metavar=metavar or field.name.upper(), **kwargs)
        return
    flags = [f"--{dest.replace('_', '-')}"] + ([meta["flag"]] if meta.get("flag") else [])
    if hint is bool:
        parser.add_argument(*flags, action=argparse.BooleanOptionalAction, **kwargs)
    elif origin is list:
        parser.add_argument(*flags, action="append", metavar=metavar, **kwargs)
    elif origin is dict:
        parser.add_argument(*flags, nargs="+", action=_KeyValue, metavar=metavar or "KEY=VALUE", **kwargs)
    elif origin is tuple:
        arguments = typing.get_args(hint)
        count = "+" if Ellipsis in arguments else len(arguments)
        parser.add_argument(*flags, nargs=count, metavar=metavar, **kwargs)
    else:
        default_metavar = None if meta.get("choices") else {int: "N", float: "X", Path: "PATH"}.get(hint)
        parser.add_argument(*flags, metavar=metavar or default_metavar, **kwargs)


class _KeyValue(argparse.Action):
    """``KEY=VALUE ...`` to a dict; values are read as YAML, so ``depth=4`` is a number."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        found = dict(getattr(namespace, self.dest, None) or {})
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise ConfigError(f"{option_string} takes KEY=VALUE, not '{text}'", "for example depth=4")
            found[key] = _read_value(value)
        setattr(namespace, self.dest, found)


def _read_value(text: str) -> Any:
    """YAML, and what YAML 1.1 takes for text: numbers as ``2e-6``."""
    value = yaml.safe_load(text)
    exponent = isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", value)
    return float(value) if exponent else value


def _refuse_unknown(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    hints = _types(cls)
    metadata = {field.name: field.metadata for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in hints:
            dotted = f"{prefix}{key}"
            raise ConfigError(
                f"{where}: unknown key '{dotted}'", nearest(str(key), hints) or f"known: {', '.join(hints)}"
            )
        hint = _strip_optional(hints[key])
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            _refuse_unknown(typing.cast(type, hint), value, where, f"{prefix}{key}.")
        choices = metadata[key].get("choices")
        if choices and value is not None and value not in choices:
            raise ConfigError(
                f"{where}: '{prefix}{key}' is {value!r}",
                nearest(str(value), choices) or f"choose one of {', '.join(choices)}",
            )


def _usage(cls: type, key: str) -> str:
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if field.name == key:
            if field.metadata.get("positional"):
                return f"give {key.upper()}"
            return f"give --{key.replace('_', '-')}"
    return f"give --{key.replace('_', '-')}"
