"""What values are that are no class ids."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.segment.datasets.values import explain, unknown_values
from gkd_scale.types import IGNORE, Int64Array


def counts_of(pixels: Mapping[int, int]) -> Int64Array:
    counts = np.zeros(256, np.int64)
    for value, count in pixels.items():
        counts[value] = count
    return counts


def what(*values: int, **pixels: int) -> str:
    counts = counts_of(
        {**dict.fromkeys(values, 100), **{int(key[1:]): count for key, count in pixels.items()}}
    )
    explanation = explain([value for value in range(IGNORE) if counts[value]], counts)
    return explanation.what if explanation else ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 17, 34, 187), "multiples of 17"),
        ((0, 85, 170, 255), "multiples of 85"),
        ((0, 127, 255), "multiples of 127"),
        ((0, 20, 40, 60, 80, 100, 120), "multiples of 20"),
        ((0, 2, 4, 6, 8), "multiples of 2"),
        ((22, 34, 38, 90, 113, 128, 147, 185), "far apart"),
        ((244, 246, 253, 254, 255), "count down from 255"),
        (tuple(range(150)), "more than segmentation labels have"),
        ((0, 1, 2, 255), ""),
        ((1, 2, 3), ""),
        ((0, 1), ""),
        ((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), ""),
    ],
)
def test_what_values_are(values: tuple[int, ...], message: str) -> None:
    assert message in what(*values) and bool(message) == bool(what(*values))


def test_soft_edges() -> None:
    between = {f"v{value}": 3 for value in range(5, 250)}
    assert "soft edges" in what(v0=9000, v255=4000, **between)


@given(st.integers(2, 60), st.integers(0, 60))
def test_ids_that_follow_each_other_are_never_suspected(classes: int, missing: int) -> None:
    values = [value for value in range(classes) if value != missing] or [0]
    explanation = explain(values, counts_of(dict.fromkeys(values, 1)))
    assert explanation is None or (not explanation.sure and len(values) < 3), (
        "0 and 2 may be 0 and 1, doubled"
    )


@given(st.sets(st.integers(0, 254), min_size=1))
def test_any_values_can_be_explained_or_not(values: set[int]) -> None:
    order = sorted(values)
    explanation = explain(order, counts_of(dict.fromkeys(order, 1)))
    assert explanation is None or (explanation.what and explanation.hint)


def test_why_values_are_unknown() -> None:
    def cause(classes: int, *values: int, text: str = "class ids") -> str:
        return (unknown_values(counts_of(dict.fromkeys(values, 9)), classes, text) or ("",))[0]

    assert cause(3, 1, 2, 3) == "its values count from 1 to 3"
    assert cause(19, 7, 11, 21, 26, text="train ids") == "the values look like label ids"
    assert "multiples of 127" in cause(3, 0, 127, 255)
    assert cause(4, 0, 7) == "" and cause(4, 255) == "", "one stray value says nothing"
