"""Converters: what they write is read back as it was, interrupted or not, and never mixed with other data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gkd_scale import files
from gkd_scale.cli import main
from gkd_scale.segment.datasets.registry import open_dataset

from .miniature import write_image, write_values


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "vistas"
    for part, images in (("training", 3), ("validation", 2)):
        for index in range(images):
            write_image(root / f"{part}/images/{index}.jpg", seed=index)
            write_values(root / f"{part}/labels/{index}.png", [13, 24, 55, 65, index])
    return root


def convert(*argv: object) -> int:
    return main(["datasets", "convert", *map(str, argv)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_mapillary_becomes_a_folder_of_the_19_classes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert("mapillary", source, out) == 0
    for part, images in (("train", 3), ("val", 2)):
        before, after = open_dataset(f"mapillary:{source}@{part}"), open_dataset(f"folder:{out / part}")
        assert len(after) == images and list(after.classes) == list(before.classes)
        for index in range(images):
            np.testing.assert_array_equal(after[index].label, before[index].label)
            np.testing.assert_array_equal(after[index].image, before[index].image)
            assert after[index].name == before[index].name
    assert (out / "train/images/0.jpg").is_symlink()
    assert sorted(path.name for path in out.iterdir()) == ["converted.json", "train", "val"]


def test_one_part_is_the_folder_itself_and_images_can_be_copied(source: Path, tmp_path: Path) -> None:
    assert convert("mapillary", f"{source}@val", tmp_path / "out", "--copy") == 0
    assert len(open_dataset(f"folder:{tmp_path / 'out'}")) == 2
    assert not (tmp_path / "out/images/0.jpg").is_symlink()


def test_it_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("mapillary", source, tmp_path / "whole") == 0
    whole, write, count = contents(tmp_path / "whole"), files.write_bytes, 0

    def stop(path: Path, data: bytes) -> None:
        nonlocal count
        count += path.suffix == ".png"
        if count == 3:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(files, "write_bytes", stop)
    assert convert("mapillary", source, tmp_path / "out", "--workers", 0) == 130
    assert not (tmp_path / "out/converted.json").exists() and (tmp_path / "out/converting.json").exists()
    monkeypatch.setattr(files, "write_bytes", write)
    capsys.readouterr()
    assert convert("mapillary", source, tmp_path / "out") == 0
    assert "kept 2" in capsys.readouterr().out
    assert contents(tmp_path / "out") == whole


def test_gtavs_palette_becomes_train_ids(tmp_path: Path) -> None:
    write_image(tmp_path / "gta/images/00001.png")
    write_values(tmp_path / "gta/labels/00001.png", [7, 26, 0, 34])
    assert convert("gtav", tmp_path / "gta", tmp_path / "out") == 2  # too few images to hold any out
    assert convert("gtav", f"{tmp_path / 'gta'}@train", tmp_path / "out") == 0
    assert set(np.unique(open_dataset(f"folder:{tmp_path / 'out'}").label(0))) == {0, 13, 255}


def test_classes_that_occur_nowhere_stay_known(tmp_path: Path) -> None:
    write_image(tmp_path / "synthia/RGB/0.png")
    write_values(tmp_path / "synthia/GT/LABELS/0.png", [3, 8])
    for index in range(1, 3):
        write_image(tmp_path / f"synthia/RGB/{index}.png")
        write_values(tmp_path / f"synthia/GT/LABELS/{index}.png", [3])
    assert convert("synthia", f"{tmp_path / 'synthia'}@train", tmp_path / "out") == 0
    assert list(open_dataset(f"folder:{tmp_path / 'out'}").absent) == ["terrain", "truck", "train"]


def test_mistakes_exit_2(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    assert convert("mapillary", f"{source}@val", tmp_path / "done") == 0
    for argv, message in (
        (("mapilary", source, tmp_path / "out"), "did you mean 'mapillary'"),
        (("mapillary", source, tmp_path / "full"), "holds files that convert did not write"),
        (("mapillary", f"{source}@train", tmp_path / "done"), "holds other data: source"),
        (("mapillary", tmp_path, tmp_path / "out"), "no folder training/"),
    ):
        assert convert(*argv) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert json.loads((tmp_path / "done/converted.json").read_text())["pairs"] == 2


def test_two_images_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for sequence in ("a", "b"):
        write_image(tmp_path / f"acdc/rgb_anon/fog/val/{sequence}/1_rgb_anon.png")
        write_values(tmp_path / f"acdc/gt/fog/val/{sequence}/1_gt_labelTrainIds.png", [0])
    assert convert("acdc", tmp_path / "acdc", tmp_path / "out") == 2
    assert "have the same name" in capsys.readouterr().err
