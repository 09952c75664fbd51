"""YAML and JSON that people write: presets, recipes, search spaces, DeepSpeed configs.

Both are read strictly, since a file that means something else than it seems to mean gives a silently wrong
run. A key that occurs twice is an error that names the lines. Scalars of YAML are those of YAML 1.2, not of
1.1: ``1e-3`` is a number, ``on`` and ``no`` are words, ``12:30`` and ``2026-01-01`` are texts, and so is
``010``. JSON has no ``NaN``. Text is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import yaml

from gkd_scale.errors import ConfigError

_BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))
_SCALARS = {
    _BOOL: (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF"),
    _INT: (re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)\Z"), "-+0123456789"),
    _FLOAT: (
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        "-+.0123456789",
    ),
}
_UNKNOWN = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Loader(yaml.SafeLoader):
    """Plain YAML types with the scalars above; no dates, sets or binaries; no alias to itself."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (*_SCALARS, *_UNKNOWN)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "str", "float")
    }


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""), 0)


for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
_Loader.add_constructor(_INT, _integer)
_Loader.add_constructor("tag:yaml.org,2002:seq", partial(_Loader.construct_sequence, deep=True))
_Loader.add_constructor("tag:yaml.org,2002:map", partial(_Loader.construct_mapping, deep=True))


class _Dumper(yaml.SafeDumper):
    """Quotes texts that would be read as numbers."""


_Dumper.add_implicit_resolver(_FLOAT, _SCALARS[_FLOAT][0], list(_SCALARS[_FLOAT][1]))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError if it is missing, not YAML, or no mapping."""
    text = _text(path, "YAML")
    if not text.strip():
        raise ConfigError(f"{path} is empty", "write 'key: value' lines, or leave the file out")
    try:
        result = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error.message}", error.hint) from None
    if result is None:  # nothing but comments
        return {}
    if not isinstance(result, dict):
        raise ConfigError(f"{path} holds a {_kind(result)}, not a mapping", "write 'key: value' lines")
    for key in result:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: the key {key!r} is read as a {_kind(key)}", f'write "{key}"')
    return result


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; ConfigError, whose message names no file, if it is none."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _refuse_equal_keys(root)
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        if "'\\t'" in str(error.problem):
            raise ConfigError(f"{line}a tab where YAML has spaces", "indent with spaces") from None
        problem = error.problem or error.context
        raise ConfigError(f"{line}{problem}", "mend that line, or one before it") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:
        raise ConfigError(" ".join(str(error).split()), "mend the text") from None
    except RecursionError:
        raise ConfigError("it is nested too deeply", "mend the text") from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    """``values`` as YAML that :func:`read_yaml` reads back."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConfigError if it is missing, not JSON, or no object."""
    text = _text(path, "JSON")
    try:
        result = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant)
    except _EqualKeys as error:
        raise ConfigError(f"{path}: {_equal_keys(text, error.args[0])}", "keep one of them") from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON, line {error.lineno}: {error.msg}", _json_hint(text, error)
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}", "write a number") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply", "mend the file") from None
    if not isinstance(result, dict):
        raise ConfigError(f"{path} holds a {_kind(result)}, not an object", 'write {"key": value}')
    return result


# ------------------------------------------------------------------------------------------ pieces


def _text(path: Path, what: str) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}", "check the path") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as {what}: {error.strerror}", "check the path") from None
    try:
        if raw.startswith(_UTF16) or b"\0" in raw:
            raise UnicodeError
        return raw.decode("utf-8-sig")
    except UnicodeError:
        raise ConfigError(
            f"{path} cannot be read as {what}: it is not UTF-8 text", "save it as UTF-8"
        ) from None


def _kind(value: object) -> str:
    """What a value is, in words."""
    names = {bool: "boolean", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return names.get(type(value), "null")


def _refuse_equal_keys(root: yaml.Node) -> None:
    """ConfigError, which names the lines, if a mapping of the tree has a key twice."""
    todo: list[tuple[yaml.Node, str]] = [(root, "")]
    ids = set()
    while todo:
        node, prefix = todo.pop()
        if id(node) in ids:
            continue
        ids.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += [(item, prefix) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line, name = key.start_mark.line + 1, f"{prefix}{key.value}"
                if before := lines.get((key.tag, key.value)):
                    where = f"in line {line}" if line == before else f"in lines {before} and {line}"
                    raise ConfigError(f"the key '{name}' is there twice, {where}", "keep one of them")
                lines[key.tag, key.value] = line
                todo.append((value, f"{name}."))


class _EqualKeys(Exception):
    """A JSON object has the key ``args[0]`` twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _EqualKeys(key)
        values[key] = value
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"it says {text}, which is no number")


def _equal_keys(text: str, key: str) -> str:
    """The message that a JSON text has ``key`` twice, with the lines if it can be read as YAML too."""
    try:
        root = yaml.compose(text.replace("\t", " "), Loader=_Loader)
        _refuse_equal_keys(root or yaml.ScalarNode("", ""))
    except ConfigError as error:
        return error.message
    except (yaml.YAMLError, RecursionError):
        pass
    return f"the key '{key}' is there twice"


def _json_hint(text: str, error: json.JSONDecodeError) -> str:
    line = text.splitlines()[error.lineno - 1] if text.strip() else ""
    before = text[: error.pos].rstrip()
    if not text.strip():
        return "the file is empty"
    if re.match(r"\s*(//|#|/\*)", text[error.pos :]) or re.match(r"\s*(//|#|/\*)", line):
        return "JSON has no comments: remove them"
    if before.endswith(",") or text[error.pos : error.pos + 1] == ",":
        return "JSON has no comma before a closing bracket: remove it"
    if "'" in line[error.colno - 1 : error.colno + 1]:
        return "JSON has double quotes"
    if re.match(r"(True|False|None)\b", text[error.pos :]):
        return "JSON has true, false and null"
    return "mend the file"
