"""Potsdam's and Vaihingen's tiles: every pixel in a crop, every crop read back as the tile was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.cli import main
from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.isprs import LABELS_6
from gkd_scale.segment.datasets.labels import read_image
from gkd_scale.segment.datasets.registry import open_dataset
from gkd_scale.segment.datasets.tiles import ORIGINALS, boxes, to_indices
from gkd_scale.types import IGNORE

from .miniature import write_array

COLOURS = np.array([*LABELS_6.palette, (0, 0, 0)], np.uint8)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 60))
def test_crops_cover_the_tile_and_lie_within_it(height: int, width: int, crop: int) -> None:
    mask = np.zeros((height, width), bool)
    for left, top, right, lower in boxes((height, width), crop):
        assert 0 <= left < right <= width and 0 <= top < lower <= height
        assert right - left == min(crop, width) and lower - top == min(crop, height)
        mask[top:lower, left:right] = True
    assert mask.all()


def test_the_published_counts() -> None:
    per_tile, splits = len(boxes((6000, 6000))), ORIGINALS["potsdam"].splits
    assert [per_tile * len(splits[split]) for split in ("train", "val")] == [3456, 2016]
    assert "7_13" in splits["val"] and "6_7" in splits["train"] and "4_15" in splits["val"]
    vaihingen = ORIGINALS["vaihingen"].splits
    assert len(vaihingen["train"]) + len(vaihingen["val"]) == 33
    assert not set(vaihingen["train"]) & set(vaihingen["val"])


def write_tile(images: list[Path], label: Path, size: tuple[int, int], seed: int) -> np.ndarray:
    """A tile of large blocks; returns its train ids."""
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.integers(0, 7, (-(-size[0] // 40), -(-size[1] // 40))), np.ones((40, 40), int))
    ids = ids[: size[0], : size[1]]
    for path in images:
        write_array(path, COLOURS[ids] // 2)
    write_array(label, COLOURS[ids])
    return np.where(ids == 6, IGNORE, ids)


def test_potsdam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "Potsdam", tmp_path / "out"
    images = [root / f"2_Ortho/top_potsdam_2_10_{space}.tif" for space in ("RGB", "IRRG")]
    ids = write_tile(images, root / "5_Labels_all/top_potsdam_2_10_label.tif", (600, 700), 0)
    write_tile(images[:0], root / "5_Labels_all/top_potsdam_2_11_label.tif", (40, 40), 1)
    assert main(["datasets", "convert", "potsdam", str(root), str(out)]) == 0
    output = capsys.readouterr().out
    assert "not there: 2_11" in output and "tiles 2" in output
    for adapter in ("potsdam_rgb", "potsdam_irrg"):
        dataset = open_dataset(f"{adapter}:{out}@train")
        assert [dataset[i].name for i in range(4)] == [
            f"2_10_{left}_{top}_{left + 512}_{top + 512}" for left in (0, 188) for top in (0, 88)
        ]
        for index in range(4):
            left, top = (int(part) for part in dataset[index].name.split("_")[2:4])
            window = np.s_[top : top + 512, left : left + 512]
            np.testing.assert_array_equal(dataset[index].label, ids[window])
            expected = COLOURS[np.where(ids == IGNORE, 6, ids)] // 2
            np.testing.assert_array_equal(dataset[index].image, expected[window])
    (out / "RGB/ann_dir/train" / f"{dataset[0].name}.png").unlink()
    assert main(["datasets", "convert", "potsdam", str(root), str(out)]) == 0
    assert "kept 1" in capsys.readouterr().out
    assert len(open_dataset(f"potsdam_rgb:{out}@train")) == 4


def test_vaihingens_images_and_labels_have_one_name(tmp_path: Path) -> None:
    root, out = tmp_path / "Vaihingen", tmp_path / "out"
    for area in (1, 2):
        name = f"top_mosaic_09cm_area{area}.tif"
        ids = write_tile([root / "top" / name], root / "ground_truth_COMPLETE" / name, (50, 60), area)
    assert main(["datasets", "convert", "vaihingen", str(root), str(out)]) == 0
    assert len(open_dataset(f"vaihingen_irrg:{out}@train")) == 1
    np.testing.assert_array_equal(open_dataset(f"vaihingen_irrg:{out}@val").label(0), ids)


def test_colours_that_are_a_little_off_are_snapped_and_others_refused(tmp_path: Path) -> None:
    label = write_array(tmp_path / "x.tif", np.array([[(252, 255, 0), (3, 2, 250)]], np.uint8))
    np.testing.assert_array_equal(to_indices(read_image(label), label), [[5, 2]])
    write_array(label, np.array([[(128, 255, 0)]], np.uint8))
    with pytest.raises(DataError, match=r"x\.tif: the colour \(128, 255, 0\)"):
        to_indices(read_image(label), label)


def test_a_folder_without_tiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "convert", "potsdam", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no tile with its label" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
