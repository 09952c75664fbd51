"""Stored values to train ids."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.labels import Encoding, identity, ranges, read_stored
from gkd_scale.types import IGNORE

from .miniature import write_array, write_grey, write_png16

HERE = Path("x.png")
IDS = Encoding({7: 0, 8: 1, 0: IGNORE})
COLOURS = Encoding({}, {(10, 20, 30): 0, (255, 0, 1): 1, (0, 0, 0): IGNORE})


def test_listed_values_become_train_ids_and_255_is_ignored() -> None:
    ids = np.array([[7, 8], [0, 255]], np.uint8)
    np.testing.assert_array_equal(IDS.decode(ids, HERE), [[0, 1], [IGNORE, IGNORE]])


@given(st.integers(0, 300))
def test_other_values_are_refused_with_file_and_value(value: int) -> None:
    ids = np.array([[7, value]], np.uint16)
    if value in (0, 7, 8, 255):
        assert IDS.decode(ids, HERE)[0, 0] == 0
        return
    with pytest.raises(DataError, match=rf"x\.png: label value {value} "):
        IDS.decode(ids, HERE)


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
    numbers: set[int] = set()
    for run in ranges(values).split(", "):
        low, _, high = run.partition(" to ")
        numbers |= set(range(int(low), int(high or low) + 1))
    assert numbers == values


# ----------------------------------------------------------------------- files that are no labels


@pytest.mark.parametrize("bits", [1, 2, 4])
@given(data=st.data())
def test_greys_of_few_bits_are_read_as_they_were_stored(bits: int, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    values = np.random.default_rng(height * width).integers(0, 1 << bits, (height, width))
    with tempfile.TemporaryDirectory() as folder:
        ids = read_stored(write_grey(Path(folder, "x.png"), values, bits))
    np.testing.assert_array_equal(ids, values)
    np.testing.assert_array_equal(identity(16).decode(ids, HERE), values)


def test_lossy_files_are_refused_whatever_they_are_called(tmp_path: Path) -> None:
    for format in ("JPEG", "JPEG2000", "PNG", "BMP", "GIF", "TIFF"):
        path = tmp_path / f"{format}.png"
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) // 8).save(path, format)
        if format.startswith("JPEG"):
            with pytest.raises(DataError, match=f"is a {format} file called .png: lossy compression"):
                read_stored(path)
        else:
            assert read_stored(path)[7, 7] == 7
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png", "TIFF", compression="jpeg")
    with pytest.raises(DataError, match="lossy compression"):
        read_stored(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("ids", "hint"),
    [
        (np.full((4, 4, 3), 7, np.uint8), "store one of its channels alone"),
        (
            np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8),
            "images/ and labels/ are not",
        ),
        (np.eye(4, dtype=np.uint8)[..., None] * np.array([200, 9, 9], np.uint8), "not colours"),
        (np.dstack([np.zeros((4, 4, 3), np.uint8), np.eye(4, dtype=np.uint8)]), "only its alpha differs"),
        (np.array([[26001, 26002, 7]], np.int32), "ids of instances"),
        (np.array([[0, 257, 514]], np.int32), "divide by 257"),
        (np.arange(400)[None], "instances, of depths or of a photograph"),
        (np.array([[0, -1]]), "255 for ignored"),
        (np.array([[0.5]]), "8-bit integers"),
        (np.array([[1, 2]], np.uint8), "subtract 1"),
        (np.array([[0, 127, 255]], np.uint8), "divide the values by 127"),
        (np.array([[0, 9]], np.uint8), "or the class list (classes.txt)"),
    ],
)
def test_what_is_no_label_says_what_it_may_be(ids: np.ndarray, hint: str) -> None:
    with pytest.raises(DataError) as error:
        identity(2).decode(ids, HERE)
    assert "x.png" in error.value.message and hint in error.value.hint
