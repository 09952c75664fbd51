"""Stored values to train ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.labels import Encoding, ranges, read_stored
from gkd_scale.types import IGNORE

from .miniature import write_array, write_png16

HERE = Path("x.png")
IDS = Encoding({7: 0, 8: 1, 0: IGNORE})
COLOURS = Encoding({}, {(10, 20, 30): 0, (255, 0, 1): 1, (0, 0, 0): IGNORE})


def test_listed_values_become_train_ids_and_255_is_ignored() -> None:
    stored = np.array([[7, 8], [0, 255]], np.uint8)
    np.testing.assert_array_equal(IDS.decode(stored, HERE), [[0, 1], [IGNORE, IGNORE]])


@given(st.integers(0, 300))
def test_other_values_are_refused_with_file_and_value(value: int) -> None:
    stored = np.array([[7, value]], np.uint16)
    if value in (0, 7, 8, 255):
        assert IDS.decode(stored, HERE)[0, 0] == 0
        return
    with pytest.raises(DataError, match=rf"x\.png: label value {value} "):
        IDS.decode(stored, HERE)


@given(st.lists(st.sampled_from([(10, 20, 30), (255, 0, 1), (0, 0, 0)]), min_size=1, max_size=20))
def test_colours(colours: list[tuple[int, int, int]]) -> None:
    expected = [COLOURS.colours[colour] for colour in colours]
    rgba = np.array([[(*colour, 128) for colour in colours]], np.uint8)
    np.testing.assert_array_equal(COLOURS.decode(rgba[..., :3], HERE)[0], expected)
    np.testing.assert_array_equal(COLOURS.decode(rgba, HERE)[0], expected)


def test_an_unlisted_colour_is_named() -> None:
    with pytest.raises(DataError, match=r"x\.png: the colour \(10, 20, 31\)"):
        COLOURS.decode(np.array([[(10, 20, 30), (10, 20, 31)]], np.uint8), HERE)


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_of_several_channels_are_read_whole(tmp_path: Path, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 1 << 16, (7, 9, channels), dtype=np.uint16)
    samples[0, 0] = (0, 255, 256, 65535)[:channels]
    np.testing.assert_array_equal(read_stored(write_png16(tmp_path / "x.png", samples)), samples)


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_stored(write_array(tmp_path / "x.png", samples)), samples)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_say_exactly_the_values(values: set[int]) -> None:
    said: set[int] = set()
    for run in ranges(values).split(", "):
        low, _, high = run.partition(" to ")
        said |= set(range(int(low), int(high or low) + 1))
    assert said == values
