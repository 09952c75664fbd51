"""Charts: what is drawn, and what is left out."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.report.charts import line_chart, number

POINTS = st.lists(st.tuples(st.integers(1, 10**6), st.floats()), max_size=30)


@given(st.dictionaries(st.text(max_size=5), POINTS, max_size=3), st.booleans())
def test_any_numbers_make_a_picture_inside_its_frame_or_none(
    curves: dict[str, list[tuple[float, float]]], log: bool
) -> None:
    svg = line_chart("loss", curves, log=log)
    if not svg:
        return
    ElementTree.fromstring(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "", svg))
    for point in " ".join(re.findall(r'points="([^"]*)"', svg)).split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= 420 and 0 <= y <= 220


def test_values_that_cannot_be_drawn_are_left_out() -> None:
    svg = line_chart("loss", {"loss": [(1, 1.0), (2, math.nan), (3, math.inf), (4, 0.0), (5, 0.1)]}, log=True)
    (points,) = re.findall(r'points="([^"]*)"', svg)
    assert len(points.split()) == 2
    assert line_chart("loss", {"loss": [(1, 1.0)]}) == ""


def test_a_long_curve_keeps_its_last_point() -> None:
    svg = line_chart("loss", {"loss": [(step, float(step)) for step in range(1, 10_002)]})
    assert "1e+04 at step 10001" in svg or "10001 at step 10001" in svg
    (points,) = re.findall(r'points="([^"]*)"', svg)
    assert len(points.split()) <= 402


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.12345, "0.123"), (1234.5, "1234"), (12.345, "12.3"), (1e-5, "1e-05")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
