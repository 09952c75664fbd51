"""Archives unpacked in other places than a layout wants them: what is said, and that following it helps."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.registry import open_dataset

from .miniature import write_image, write_values


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder whose neighbours are no other test's: datasets are looked for beside the one named."""
    folder = tmp_path / "disk/home"
    folder.mkdir(parents=True)
    return folder


def cities(images: Path, labels: Path) -> None:
    write_image(images / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png")
    write_values(labels / "gtFine/val/ulm/ulm_1_gtFine_labelIds.png", [7])


def conditions(images: Path, labels: Path) -> None:
    write_image(images / "rgb_anon/night/val/a/1_rgb_anon.png")
    write_values(labels / "gt/night/val/a/1_gt_labelTrainIds.png", [7])


def states(images: Path, labels: Path) -> None:
    write_image(images / "images/10k/val/1.jpg")
    write_values(labels / "labels/sem_seg/masks/val/1.png", [7])


def games(images: Path, labels: Path) -> None:
    write_image(images / "images/00001.png")
    write_values(labels / "labels/00001.png", [7])


def vistas(images: Path, labels: Path) -> None:
    write_image(images / "validation/images/1.jpg")
    write_values(labels / "validation/v1.2/labels/1.png", [7])


WRITERS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cityscapes": (cities, "@val"),
    "acdc": (conditions, "@night/val"),
    "bdd100k": (states, "@val"),
    "gtav": (games, ""),
    "mapillary": (vistas, "@val"),
}


def refusal(ref: str) -> DataError:
    with pytest.raises(DataError) as error:
        open_dataset(ref)
    return error.value


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("images", "labels", "place"),
    [
        ("a_trainval", "b_trainval", ""),
        ("a trainval", "b trainval", "a trainval"),
        ("a", "b", "b"),
        (".", "b", "."),
        ("a/inner", "b/inner", ""),
        ("a/inner", "b/inner", "a"),
    ],
)
def test_the_printed_command_mends_images_apart_from_labels(
    name: str, images: str, labels: str, place: str, tmp_path: Path
) -> None:
    write, part = WRITERS[name]
    root = tmp_path / "data"
    write(root / images, root / labels)
    hint = refusal(f"{name}:{root / place}{part}").hint
    match = re.fullmatch(r"run (ln .*) and use (.*)", hint)
    assert match, hint
    subprocess.run(match[1], shell=True, check=True)
    assert len(open_dataset(*shlex.split(match[2]))) == 1


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_too_high_or_too_low(name: str, tmp_path: Path) -> None:
    write, part = WRITERS[name]
    root = tmp_path / "data"
    write(root, root)
    high = refusal(f"{name}:{tmp_path}{part}")
    assert high.hint == f"use {name}:{root}{part}"
    first = next(path for path in sorted(root.rglob("*")) if path.is_dir() and any(root.glob(path.name)))
    low = refusal(f"{name}:{first}{part}")
    assert low.hint == f"use {name}:{root}{part}"


def test_ten_archives_in_ten_folders(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for index in (1, 2):
        write_image(root / f"0{index}_images/images/0000{index}.png")
        write_values(root / f"0{index}_labels/labels/0000{index}.png", [7])
    error = refusal(f"gtav:{root}")
    assert "02_images/images" in error.message and "01_labels/labels" in error.message
    assert "unpack all archives into" in error.hint


def test_splits_of_a_folder_are_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for split in ("train", "val"):
        games(root / split, root / split)
    error = refusal(f"folder:{root}")
    assert f"folder:{root}/train, folder:{root}/val" in error.hint


def test_archives_that_nobody_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    archive = root / "gtFine_trainvaltest.zip"
    archive.write_bytes(b"PK")
    assert "unzip -q" in refusal(f"cityscapes:{root}@val").hint
    assert "is an archive" in refusal(f"cityscapes:{archive}@val").message
    archive.rename(root / "gtFine.tar.gz")
    assert "tar xf" in refusal(f"cityscapes:{root}@val").hint


def test_a_complete_dataset_beside_is_not_mixed_in(tmp_path: Path) -> None:
    games(tmp_path / "other", tmp_path / "other")
    write_image(tmp_path / "mine/images/1.png")
    error = refusal(f"gtav:{tmp_path / 'mine'}")
    assert "no folder labels/" in error.message and "other" not in str(error)


def test_what_is_there_is_shown(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write_image(root / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png")
    write_values(root / "gtFine/val/ulm/ulm_1_gtFine_color.png", [7])
    error = refusal(f"cityscapes:{root}@val")
    assert "labelIds" in error.message and "ulm_1_gtFine_color.png" in error.hint


def test_all_layouts_are_named_where_labels_are_of_another_version(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write_image(root / "validation/images/1.jpg")
    write_values(root / "validation/v2.0/labels/1.png", [7])
    error = refusal(f"mapillary:{root}@val")
    assert "no folder labels/" in error.message
    assert "validation/v1.2/labels/*.png" in error.hint and "images, v2.0" in error.hint


def test_the_layout_that_was_begun_is_spoken_of(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    write_image(root / "seg/images/val/1.jpg")
    assert "no folder labels/" in refusal(f"bdd100k:{root}@val").message


def test_labels_of_other_images_beside_are_no_partners(tmp_path: Path) -> None:
    write_image(tmp_path / "mine/images/1.png")
    write_values(tmp_path / "foreign/labels/2.png", [7])
    error = refusal(f"gtav:{tmp_path / 'mine'}")
    assert "no folder labels/" in error.message and "foreign" not in str(error)
