"""YAML and JSON that people write: what is read, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale import documents
from gkd_scale.errors import ConfigError

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=6), PLAIN, max_size=4))
def test_what_is_written_is_read_back(values: dict[str, Any]) -> None:
    assert (documents.parse_yaml(documents.dump_yaml(values)) or {}) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2E6", 2e6),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("1_000", 1000),
        ("0x10", 16),
        ("010", "010"),
        ("12:30", "12:30"),
        ("2026-01-31", "2026-01-31"),
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1e-3'", "1e-3"),
        (".inf", math.inf),
        ("[1e-3, no]", [1e-3, "no"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    got = documents.parse_yaml(text)
    assert got == value and type(got) is type(value)


def test_merge_keys_merge_and_are_no_equal_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\n")
    assert documents.read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2}}
    path.write_text("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n")
    with pytest.raises(ConfigError, match=r"'b\.<<' is there twice, in lines 3 and 4"):
        documents.read_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "'a' is there twice, in lines 1 and 2"),
        ("- x: 1\n  x: 2", "'x' is there twice, in lines 1 and 2"),
        ("a: {b: [{c: 1, c: 2}]}", "'a.b.c' is there twice, in line 1"),
        ("a: &a {b: *a}", "recursive"),
        ("1: x", "the key 1 is read as a number"),
        ("true: x", "the key True is read as a boolean"),
        ("", "is empty"),
        ("just text", "holds a text"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        documents.read_yaml(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' is there twice, in line 1"),
        ('{"a": {"b": 1,\n\t"b": 2}}', "'a.b' is there twice, in lines 1 and 2"),
        ('{"a": 1 // one\n}', "no comments"),
        ('# a\n{"a": 1}', "no comments"),
        ('{"a": 1,}', "no comma before a closing bracket"),
        ("{'a': 1}", "double quotes"),
        ('{"a": True}', "true, false and null"),
        ('{"a": Infinity}', "Infinity"),
        ('{"a": 1e999}', "too large"),
        ("", "the file is empty"),
        ("[]", "holds a list"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        documents.read_json(path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_a_byte_order_mark_says_nothing_and_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "ä"}), encoding="utf-8-sig")
    assert documents.read_json(path) == {"a": "ä"}
    path.write_text(json.dumps({"a": 1}), encoding="utf-16")
    with pytest.raises(ConfigError, match="not UTF-8"):
        documents.read_json(path)
    with pytest.raises(ConfigError, match="there is no config file"):
        documents.read_json(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        documents.read_json(tmp_path)
