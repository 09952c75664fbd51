"""The confusion matrix against loops that share no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gkd_scale.segment.metrics import Confusion
from gkd_scale.types import IGNORE

CLASSES = 4
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, truth) of one shape; both may have void pixels and lack classes."""
    shape = draw(SHAPES)
    most = draw(st.integers(0, CLASSES - 1))
    guesses = st.sampled_from([*range(most + 1), *([IGNORE] if draw(st.booleans()) else [])])
    prediction = draw(hnp.arrays(np.int64, shape, elements=guesses))
    values = st.sampled_from([*range(CLASSES), IGNORE, IGNORE])
    return prediction, draw(hnp.arrays(np.uint8, shape, elements=values))


def confusion_of(prediction: np.ndarray, truth: np.ndarray) -> Confusion:
    result = Confusion(CLASSES)
    result.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return result


def iou_by_sets(prediction: np.ndarray, truth: np.ndarray) -> list[float | None]:
    """IoU class by class as sets of pixel positions."""
    valid = [tuple(p) for p in np.argwhere(truth != IGNORE)]
    ious: list[float | None] = []
    for each in range(CLASSES):
        real = {p for p in valid if truth[p] == each}
        guess = {p for p in valid if prediction[p] == each}
        union = real | guess
        ious.append(len(real & guess) / len(union) if union else None)
    return ious


@settings(deadline=None)
@given(maps())
def test_iou_equals_set_arithmetic(pair: tuple[np.ndarray, np.ndarray]) -> None:
    result = confusion_of(*pair)
    expected = iou_by_sets(*pair)
    for ours, theirs in zip(result.iou(), expected, strict=True):
        assert math.isnan(ours) if theirs is None else abs(ours - theirs) < 1e-12
    present = [value for value in expected if value is not None]
    if present:
        assert abs(result.miou() - sum(present) / len(present)) < 1e-12
    else:
        assert math.isnan(result.miou())


@settings(deadline=None)
@given(maps(), st.integers(0, 12))
def test_counting_parts_and_adding_equals_counting_the_whole(
    pair: tuple[np.ndarray, np.ndarray], row: int
) -> None:
    prediction, truth = pair
    parts = confusion_of(prediction[:row], truth[:row]) + confusion_of(prediction[row:], truth[row:])
    assert torch.equal(parts.counts, confusion_of(prediction, truth).counts)


@settings(deadline=None)
@given(maps(), st.permutations(range(CLASSES)))
def test_renaming_classes_permutes_iou_and_keeps_the_mean(
    pair: tuple[np.ndarray, np.ndarray], order: list[int]
) -> None:
    prediction, truth = pair
    table = np.arange(256)
    table[:CLASSES] = order
    before = confusion_of(prediction, truth)
    after = confusion_of(table[prediction], table[truth].astype(np.uint8))
    np.testing.assert_array_equal(after.iou()[order], before.iou())
    assert after.miou() == pytest.approx(before.miou(), abs=1e-12, nan_ok=True)


@settings(deadline=None)
@given(maps(), st.integers(0, CLASSES - 1))
def test_what_is_predicted_on_ignored_pixels_does_not_count(
    pair: tuple[np.ndarray, np.ndarray], other: int
) -> None:
    prediction, truth = pair
    variant = np.where(truth == IGNORE, other, prediction)
    assert torch.equal(confusion_of(variant, truth).counts, confusion_of(prediction, truth).counts)


def test_counts_stay_exact_where_floats_would_not() -> None:
    result = Confusion(1, torch.tensor([[2**53, 0]]))
    result.update(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.uint8))
    assert result.counts.tolist() == [[2**53 + 1, 0]]


def test_report_is_in_percent_and_absent_classes_are_none() -> None:
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    prediction = np.array([[0, 1, 1, 1]])
    report = confusion_of(prediction, truth).report(["a", "b", "c", "d"])
    assert report == {"a": 50.0, "b": pytest.approx(200 / 3), "c": None, "d": None}


def test_a_pixel_predicted_as_void_is_a_miss_and_no_false_positive() -> None:
    result = confusion_of(np.array([[0, IGNORE, 1]]), np.array([[0, 0, 1]], np.uint8))
    assert result.iou()[:2].tolist() == [0.5, 1.0] and result.miou() == 0.75


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    result = confusion_of(np.array([[0, 2]]), np.array([[0, 0]], np.uint8))
    assert result.miou() == pytest.approx((0.5 + 0.0) / 2)
