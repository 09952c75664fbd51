"""The training set as the options say: cut, mixed, and counted once beside the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gkd_scale import config as configs
from gkd_scale.segment import class_pixels
from gkd_scale.segment.config import Stage2Config
from gkd_scale.segment.sampling import BLOCK
from gkd_scale.segment.training_set import count_pixels, open_training_set, order_of
from gkd_scale.types import IGNORE

from .support import CLASSES, Blocks, write_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, images in (("a", 8), ("b", 4)):
        write_folder(tmp_path / name, Blocks(images, [(10, 12)]))
    return tmp_path


def options(root: Path, *argv: str) -> Stage2Config:
    sources = [part for name in ("a", "b") for part in ("--train", f"folder:{root / name}")]
    arguments = (*sources, "--val", f"folder:{root / 'b'}", "--out", str(root / "run"), *argv)
    return configs.parse(Stage2Config, arguments, prog="stage2.py", description="")


def test_the_fraction_is_of_each_source(root: Path) -> None:
    dataset = open_training_set(options(root, "--label-fraction", "1/4"))
    assert [len(part) for part in dataset.parts] == [2, 1] and len(dataset) == 3


def test_without_weights_all_images_come_alike(root: Path) -> None:
    config = options(root)
    order = order_of(config, open_training_set(config))
    assert sorted(order(position).image for position in range(12)) == list(range(12))


@pytest.mark.parametrize("sampling", ["uniform", "rare-class"])
def test_weights_say_how_often_a_source_comes(root: Path, sampling: str) -> None:
    config = options(root, "--train-weights", "1", "3", "--sampling", sampling)
    dataset = open_training_set(config)
    count_pixels(config, dataset)
    order = order_of(config, dataset)
    first = sum(order(position).image < 8 for position in range(BLOCK))
    assert first == BLOCK / 4


def test_pixels_are_those_of_the_labels_and_counted_again_only_for_another_set(root: Path) -> None:
    config = options(root, "--sampling", "rare-class", "--label-fraction", "1/2")
    dataset = open_training_set(config)
    pixels = class_pixels.count(dataset, workers=2)
    assert pixels.shape == (6, len(CLASSES))
    for index, row in enumerate(pixels):
        label = dataset.label(index)
        assert row.tolist() == [int((label == each).sum()) for each in range(len(CLASSES))]
        assert row.sum() == (label != IGNORE).sum()
    count_pixels(config, dataset)
    file = root / "run" / class_pixels.FILE
    mtime = file.stat().st_mtime_ns
    count_pixels(config, dataset)
    assert file.stat().st_mtime_ns == mtime
    table = class_pixels.read(root / "run", {"train": "another"})
    assert table is None
    other = options(root, "--sampling", "rare-class")
    count_pixels(other, open_training_set(other))
    assert file.stat().st_mtime_ns != mtime


def test_a_file_that_is_no_table_is_counted_again(root: Path) -> None:
    (root / "run").mkdir()
    (root / "run" / class_pixels.FILE).write_text("not Parquet")
    config = options(root, "--sampling", "rare-class")
    dataset = open_training_set(config)
    count_pixels(config, dataset)
    order = order_of(config, dataset)
    picks = [order(position) for position in range(50)]
    assert all(pick.focus is not None for pick in picks)
    masks = [dataset.label(pick.image) == pick.focus[0] for pick in picks if pick.focus]
    assert np.all([each.any() for each in masks])
