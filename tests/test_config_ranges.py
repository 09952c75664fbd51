"""Every number of every config class has a range, and no number outside it becomes a run."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gkd_scale
from gkd_scale import config
from gkd_scale.errors import ConfigError
from gkd_scale.ranges import Range


def config_classes() -> Iterator[type]:
    """Every dataclass of a module named ``config``: whatever a flag or a YAML key fills."""
    names = [each.name for each in pkgutil.walk_packages(gkd_scale.__path__, "gkd_scale.")]
    for name in [name for name in names if name.endswith(".config")]:
        for member in vars(importlib.import_module(name)).values():
            if isinstance(member, type) and dataclasses.is_dataclass(member) and member.__module__ == name:
                yield member


CLASSES = list(config_classes())
NUMBERS = [
    pytest.param(cls, field, id=f"{cls.__name__}.{field.name}")
    for cls in CLASSES
    for field in dataclasses.fields(cls)
    if config.is_numeric(typing.get_type_hints(cls)[field.name])
]


def test_the_walk_finds_what_it_should() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert {"Stage1Config", "Stage2Config", "CacheTeacherConfig", "SearchConfig", "Recipe", "Budget"} <= names
    assert len(NUMBERS) > 120


@pytest.mark.parametrize(("cls", "field"), NUMBERS)
def test_every_number_has_a_range_with_a_hint_that_holds_its_default(cls: type, field: Any) -> None:
    bounds = field.metadata.get("within")
    assert isinstance(bounds, Range), f"{cls.__name__}.{field.name} has no range: option(..., within=...)"
    assert bounds.hint
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is not dataclasses.MISSING and default is not None:
        assert not bounds.wrong(default)


@pytest.mark.parametrize(("cls", "field"), NUMBERS)
def test_what_no_option_means_is_refused_by_its_key_alone(cls: type, field: Any) -> None:
    hint = typing.get_type_hints(cls)[field.name]
    many = typing.get_origin(hint) in (tuple, list) or any(
        typing.get_origin(part) is tuple for part in typing.get_args(hint)
    )
    for value in ("nan", "inf", "-inf", "1e30", "-1e30", math.nan, math.inf, True, -(10**400)):
        with pytest.raises(ConfigError) as error:
            config.build(cls, {field.name: [value] if many else value}, "here")
        assert error.value.message.startswith(f"here: '{field.name}' is ")
        assert "\n" not in error.value.message and len(error.value.message) < 150


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["ge", "gt"]),
    st.sampled_from(["le", "lt"]),
)
def test_a_range_says_no_to_what_is_outside(number: float, low: str, high: str) -> None:
    bounds = Range(**{low: -1.0, high: 2.0})
    inside = (number > -1 or (low == "ge" and number == -1)) and (
        number < 2 or (high == "le" and number == 2)
    )
    assert (
        (number in bounds) == inside == (not bounds.wrong(number)) == (not bounds.wrong([0.5, str(number)]))
    )


def test_what_a_range_says() -> None:
    assert Range(ge=0, lt=1).wrong(2) == "2: it must be at least 0 and below 1"
    assert Range(ge=1, whole=True).wrong("1.5") == "1.5: it must be a whole number, at least 1"
    assert Range().wrong(math.nan) == "nan: it must be a number, and finite"
    assert Range().wrong("four") == "" and Range().wrong(None) == ""
