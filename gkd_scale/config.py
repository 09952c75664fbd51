"""Configuration: one dataclass a command, filled from YAML, then from flags.

A command declares its options once, as dataclass fields::

    @dataclass
    class Stage1Config:
        student: str = option("demo", "timm name of the student")
        optim: OptimConfig = section(OptimConfig)
        teacher: TeacherConfig = inline(TeacherConfig, name="teacher", weights="teacher_weights")

From that come the flags (``--student``, ``--optim.lr``; a field may add a short alias such as
``--lr``), the YAML keys, the help text, and the file ``config.yaml`` beside every run. The options of an
:func:`inline` section have no prefix: its field ``weights`` is ``--teacher-weights`` here. Flags, YAML and
the tuner go through one path, :func:`build`, which refuses unknown keys, wrong types and numbers outside
their :class:`~gkd_scale.ranges.Range`, and says what was probably meant. Types are checked by pydantic.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gkd_scale import documents
from gkd_scale.documents import read_yaml as read_yaml
from gkd_scale.errors import ConfigError, nearest, short
from gkd_scale.ranges import Range

T = TypeVar("T")
_MISSING = dataclasses.MISSING
_GIVEN = "_given"


def option(
    default: Any = _MISSING,
    help: str = "",
    *,
    flag: str | None = None,
    positional: bool = False,
    choices: Collection[str] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    within: Range | None = None,
    keys: Mapping[str, Range] | None = None,
    volatile: bool = False,
) -> Any:
    """A dataclass field that is also a flag. ``flag`` adds an alias, e.g. ``--lr`` for ``--optim.lr``.

    Its number, or each of its numbers, is ``within`` a range; ``keys`` has ranges of numbers in a mapping.
    A ``volatile`` option may change between a run and its resumption.
    """
    metadata = {
        "help": help,
        "flag": flag,
        "positional": positional,
        "choices": choices,
        "metavar": metavar,
        "within": within,
        "keys": keys,
        "volatile": volatile,
    }
    if isinstance(default, (list, dict)):
        value = default
        return dataclasses.field(default_factory=lambda: type(value)(value), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type[T]) -> T:
    """A nested group of options; its flags carry the field's name as a prefix."""
    section_field: Any = dataclasses.field(default_factory=cls)
    return typing.cast(T, section_field)


def inline(cls: type[T], /, *, short: bool = False, **keys: str | None) -> T:
    """A nested group of options whose flags and YAML keys are at the level of the class that holds it.

    ``keys`` maps a field to its key there (default: the field's name); None leaves the option out, and the
    field has its default. ``short``: inside a section, its flags are also accepted without the prefix.
    """
    metadata = {"inline": keys, "short": short}
    section_field: Any = dataclasses.field(default_factory=cls, metadata=metadata)
    return typing.cast(T, section_field)


def again(cls: Any, name: str, default: Any, help: str | None = None) -> Any:
    """The option ``name`` of a base class, with another default, and with another ``help`` if given."""
    metadata = {**cls.__dataclass_fields__[name].metadata}
    return dataclasses.field(
        default=default, metadata=metadata if help is None else {**metadata, "help": help}
    )


class Option(NamedTuple):
    """One option of a config class: a value, or a section.

    ``path`` has the attributes that lead to it from an instance: two or more in an inline section, whose
    class is ``group``. ``hint`` is its type without None.
    """

    path: tuple[str, ...]
    field: dataclasses.Field[Any]
    hint: Any
    optional: bool
    group: type | None = None
    short: bool = False

    def of(self, config: Any) -> Any:
        """Its value in an instance."""
        return functools.reduce(getattr, self.path, config)

    @property
    def is_section(self) -> bool:
        """Whether it is a section, with options of its own."""
        return dataclasses.is_dataclass(self.hint)


def options(cls: type) -> Mapping[str, Option]:
    """The options of a config class by their keys, those of inline sections among them."""
    return _options(typing.cast(Any, cls))


@functools.cache
def _options(cls: Any) -> Mapping[str, Option]:
    options_by_key: dict[str, Option] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = _strip_optional(hints[field.name])
        keys = field.metadata.get("inline")
        if keys is None:
            options_by_key[field.name] = Option((field.name,), field, hint, hint is not hints[field.name])
            continue
        for name, inner in options(hint).items():
            if (key := keys.get(name, name)) is not None:
                assert key not in options_by_key, f"{cls.__name__} has two options '{key}'"
                path, short = (field.name, *inner.path), inner.short or field.metadata["short"]
                options_by_key[key] = inner._replace(path=path, group=hint, short=short)
    return options_by_key


# ------------------------------------------------------------------------------------- building


def build(cls: type[T], values: Mapping[str, Any], where: str = "the configuration") -> T:
    """An instance of ``cls`` from nested mappings. ``where`` is their file or command, for ConfigError."""
    _check(cls, values, where)
    return _validate(cls, values, lambda _: where)


def _validate(cls: type[T], values: Mapping[str, Any], where: Callable[[str], str]) -> T:
    """``values`` as an instance; ConfigError for wrong types, and from ``__post_init__``.

    ``where(key)`` is the file or program that gives a key; ``where("")`` the one that gives all, or "".
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        config = TypeAdapter(cls).validate_python(_prepare(cls, values))
    except ConfigError as error:
        source = where("")
        raise ConfigError(f"{source}: {error.message}" if source else error.message, error.hint) from None
    except ValidationError as error:
        wrong: dict[str, str] = {}
        number = ""
        for item in error.errors():
            if item["type"] in ("int_parsing", "float_parsing"):
                number = number or _number_meant(str(item["input"]), whole=item["type"] == "int_parsing")
            key = _key(cls, item["loc"])
            if item["type"] in ("missing", "missing_argument"):
                line = f"'{key}' is required ({_usage(cls, key)})"
            else:
                line = f"'{key}' is {short(repr(item['input']))}: {item['msg']}"
            wrong.setdefault(key, line)
        source = where(next(iter(wrong)))
        raise ConfigError(
            f"{source}: " + "; ".join(wrong.values()), number or "see --help for what each option takes"
        ) from None
    object.__setattr__(config, _GIVEN, frozenset(_dotted_keys(values)))
    return config


def explicit_keys(config: Any) -> frozenset[str]:
    """Dotted keys of the options that :func:`parse` or :func:`build` were given; none for other instances."""
    return vars(config).get(_GIVEN, frozenset())


def _number_meant(text: str, *, whole: bool) -> str:
    """How to write a number that people write ``1e3``, ``0,001`` or ``10%``; else the empty string."""
    value: float | None = None
    if re.fullmatch(r"\d{1,3}(,\d{3})+" if whole else r"0,\d+|\d+,(\d\d?|\d{4,})", text):
        value = float(text.replace(",", "" if whole else "."))
    elif not whole and re.fullmatch(r"\d+(\.\d+)?%", text):
        value = float(text[:-1]) / 100
    elif whole and re.fullmatch(r"\d+(\.\d+)?[eE]\d", text) and float(text).is_integer():
        value = float(text)
    if value is None:
        return ""
    return f"write {int(value) if whole else format(value, '.12g')}"


def _key(cls: type, loc: tuple[str | int, ...]) -> str:
    """The dotted key of a location, which has attributes; after them pydantic names members of unions."""
    for key, option in options(cls).items():
        if loc[: len(option.path)] == option.path:
            below = _key(option.hint, loc[len(option.path) :]) if option.is_section else ""
            return f"{key}.{below}" if below else key
    return ""


def _prepare(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` by attribute, as the types expect them.

    If a type takes any number of values, a single one becomes a list of one. If a type takes a text, a number
    becomes that text: ``image_size: 224``. A ``~/`` that no shell saw (in YAML, after ``=`` or ``folder:``)
    becomes the home folder.
    """

    def prepare(hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return _prepare(typing.cast(type, hint), value)
        if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if _any_number(hint) and value is not None:
            inner = typing.get_args(hint)[0]
            items = value if isinstance(value, (list, tuple)) else [value]
            return [prepare(inner, item) for item in items]
        if isinstance(value, str) and {str, Path} & {hint, *typing.get_args(hint)}:
            return _HOME.sub(lambda home: f"{home[1]}{Path.home()}/", value)
        return value

    opts = options(cls)
    return _nest({opts[key].path: prepare(opts[key].hint, value) for key, value in values.items()}, cls)


_HOME = re.compile(r"^((?:[^/~]*[=:])?)~/")


def _nest(values: Mapping[tuple[str, ...], Any], cls: type) -> dict[str, Any]:
    """Nested mappings from values by path. An inline section of ``cls`` without a value has an empty one."""
    tree: dict[str, Any] = {}
    for option in options(cls).values():
        node = tree
        for name in option.path[:-1]:
            node = node.setdefault(name, {})
        if option.path in values:
            node[option.path[-1]] = values[option.path]
    return tree


def _any_number(hint: Any) -> bool:
    return typing.get_origin(hint) is list or Ellipsis in typing.get_args(hint)


def _dotted_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted_keys(value, f"{prefix}{key}.")


def from_dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"optim.lr": 1}`` to ``{"optim": {"lr": 1}}``."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, mappings merged key by key."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = (
            merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return result


def copy_with(config: T, **values: Any) -> T:
    """A copy in which some options, by their keys, have other values."""
    opts = options(type(config))
    return typing.cast(T, _copy(config, {opts[key].path: value for key, value in values.items()}))


def _copy(part: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """A copy of a config or section in which the attributes at some paths have other values."""
    below: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *rest), value in values.items():
        below.setdefault(name, {})[tuple(rest)] = value
    new = {name: v[()] if () in v else _copy(getattr(part, name), v) for name, v in below.items()}
    return dataclasses.replace(part, **new)


def to_dict(config: Any, *, volatile: bool = True) -> dict[str, Any]:
    """The resolved config as plain YAML types, by key; with or without what is ``volatile``."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_dict(value, volatile=volatile)
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    return {
        key: plain(option.of(config))
        for key, option in options(type(config)).items()
        if volatile or not option.field.metadata.get("volatile")
    }


def to_yaml(config: Any) -> str:
    """The resolved config as YAML, readable by ``--config``."""
    return documents.dump_yaml(to_dict(config))


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
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        names = [flag for action in parser._actions for flag in action.option_strings]
        first = unknown[0].split("=")[0]
        what = "flag" if first.startswith("-") else "argument"
        raise ConfigError(f"{prog}: unknown {what} '{first}'", nearest(first, names) or "see --help")
    flags = vars(namespace)
    flags.pop("local_rank", None)
    file = flags.pop("config", None)
    in_file = read_yaml(file) if file else {}
    _check(cls, in_file, str(file))
    _check(cls, from_dotted(flags), prog)

    def where(key: str) -> str:
        if not key:
            return str(file) if file and not flags else ""
        return prog if key in flags or not file else str(file)

    return _validate(cls, merge(in_file, from_dotted(flags)), where)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        near = nearest(choice[1], re.findall(r"[^', ]+", choice[2])) if choice else ""
        raise ConfigError(f"{self.prog}: {message}", near or "see --help")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        import shutil

        super().__init__(prog, max_help_position=34, width=min(110, shutil.get_terminal_size().columns))


def _strip_optional(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(hint) if part is not type(None)]
        return inner[0] if len(inner) == 1 else str
    return hint


def _add_arguments(parser: Any, cls: type, prefix: str) -> None:
    groups: dict[type | None, Any] = {None: parser}
    for key, option in options(cls).items():
        part: Any = option.hint if option.is_section else option.group
        if part not in groups:
            title = (part.__doc__ or part.__name__).strip().splitlines()[0]
            # argparse shows no groups in groups: an inline section in a section is of the section's group.
            groups[part] = parser if prefix else parser.add_argument_group(title)
        if option.is_section:
            _add_arguments(groups[part], option.hint, f"{prefix}{key}.")
        else:
            _add_argument(groups[part], key, option, prefix)


def _add_argument(parser: Any, key: str, option: Option, prefix: str) -> None:
    field, hint, meta = option.field, option.hint, option.field.metadata
    dest = f"{prefix}{key}"
    help_text = meta.get("help", "").replace("%", "%%")
    default = field.default if field.default_factory is _MISSING else field.default_factory()
    if default not in (_MISSING, None, "", [], {}) and not meta.get("positional"):
        text = " ".join(map(str, default)) if isinstance(default, (tuple, list)) else default
        help_text += f" (default: {text})"
    kwargs: dict[str, Any] = {"dest": dest, "help": help_text, "default": argparse.SUPPRESS}
    if meta.get("choices"):
        kwargs["choices"] = list(meta["choices"])
    origin = typing.get_origin(hint)
    metavar = meta.get("metavar")
    if meta.get("positional"):
        kwargs.pop("dest")
        if origin is list:
            kwargs["nargs"] = "+" if default is _MISSING else "*"
        elif default is not _MISSING:
            kwargs["nargs"] = "?"
        parser.add_argument(dest, metavar=metavar or key.upper(), **kwargs)
        return
    flags = [f"--{name.replace('_', '-')}" for name in ([dest, key] if option.short else [dest])]
    flags += [meta["flag"]] if meta.get("flag") else []
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
        pairs = dict(getattr(namespace, self.dest, None) or {})
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise ConfigError(f"{option_string} takes KEY=VALUE, not '{text}'", "for example depth=4")
            if key in pairs:
                raise ConfigError(f"{option_string} gives '{key}' twice", "keep one of them")
            try:
                pairs[key] = documents.parse_yaml(value)
            except ConfigError as error:
                raise ConfigError(f"{option_string} {text}: {error.message}", "for example depth=4") from None
        setattr(namespace, self.dest, pairs)


# -------------------------------------------------------------------------------------- checking


def _check(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """ConfigError for an unknown key, a value that is no choice, and a number outside its range."""
    opts = options(cls)
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in opts:
            parent, dot, leaf = str(key).partition(".")
            place = parent if dot and parent in opts else _section_of(str(key), opts)
            raise ConfigError(
                f"{where}: unknown key '{path}'",
                f"write '{leaf if dot else key}' below '{place}:'"
                if place
                else nearest(str(key), opts) or f"known: {', '.join(opts)}",
            )
        hint, meta = opts[key].hint, opts[key].field.metadata
        if opts[key].is_section and isinstance(value, Mapping):
            _check(hint, value, where, f"{path}.")
            continue
        if opts[key].optional and value in ("None", "null", "~"):
            raise ConfigError(f"{where}: '{path}' is '{value}'", "leave it out (in YAML, write null)")
        if hint is str and isinstance(value, bool):
            raise ConfigError(f"{where}: '{path}' is {str(value).lower()}", "write a text")
        choices = meta.get("choices")
        for item in value if isinstance(value, list) else [value]:
            if choices and item is not None and item not in list(choices):
                raise ConfigError(
                    f"{where}: '{path}' is {short(repr(item))}",
                    nearest(str(item), choices) or f"choose one of {', '.join(choices)}",
                )
        if is_numeric(hint):
            _check_number(meta.get("within") or Range(), value, f"{where}: '{path}'")
        elif isinstance(value, Mapping):
            for inner, item in value.items():
                _check_argument((meta.get("keys") or {}).get(inner), item, f"{where}: '{path}.{inner}'")


def _section_of(key: str, opts: Mapping[str, Option]) -> str:
    """The section that has an option ``key``; the empty string if none has it."""
    sections = (name for name, opt in opts.items() if opt.is_section and key in options(opt.hint))
    return next(sections, "")


def is_numeric(hint: Any) -> bool:
    """Whether a type is a number, or a list of them; not what may be a text too, which is read elsewhere."""
    if hint in (int, float):
        return True
    parts = [part for part in typing.get_args(hint) if part not in (type(None), Ellipsis)]
    return bool(parts) and typing.get_origin(hint) is not dict and all(map(is_numeric, parts))


def _check_number(bounds: Range, value: Any, what: str) -> None:
    if wrong := bounds.wrong(value):
        raise ConfigError(f"{what} is {wrong}", bounds.hint or "see --help for what it means")


_WORDS = {
    **dict.fromkeys(("yes", "no", "on", "off"), "write true or false"),
    **dict.fromkeys(("none", "~"), "write null, or leave it out"),
    **dict.fromkeys(("nan", "inf", "-inf", "infinity", "-infinity"), "give a finite number"),
}
"""Texts that other languages read as something else: as arguments they would be taken for texts, silently."""


def _check_argument(bounds: Range | None, value: Any, what: str) -> None:
    """ConfigError for an argument of KEY=VALUE that no function takes, or that is outside ``bounds``."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_argument(None, item, f"{what[:-1]}.{key}'")
    elif bounds is not None and value is not None:
        _check_number(bounds, value, what)
        if isinstance(value, str):
            raise ConfigError(f"{what} is the text '{value}'", bounds.hint or "give a number")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_argument(None, item, what)
    elif isinstance(value, str) and value.lower() in _WORDS:
        raise ConfigError(f"{what} is the text '{value}'", _WORDS[value.lower()])
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{what} is {value}", "give a finite number")


def _usage(cls: type, key: str) -> str:
    option = options(cls).get(key)
    if option is not None and option.field.metadata.get("positional"):
        return f"give {key.upper()}"
    return f"give --{key.replace('_', '-')}"
