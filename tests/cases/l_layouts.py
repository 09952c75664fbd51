"""Kind L: datasets that were unpacked in other places than their adapter looks in."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.registry import open_dataset
from tests.cases.case import Bench, Ran, case
from tests.segment.datasets.miniature import write_image, write_values

KIND = "L. Wrong cause or no next step"


def _city(images: Path, labels: Path, split: str = "val", kind: str = "labelIds") -> None:
    write_image(images / f"leftImg8bit/{split}/ulm/ulm_1_leftImg8bit.png")
    write_values(labels / f"gtFine/{split}/ulm/ulm_1_gtFine_{kind}.png", [7])


def _data(bench: Bench) -> Path:
    """A folder with nothing beside it, where partners would be looked for."""
    (bench.folder / "data").mkdir(exist_ok=True)
    return bench.folder / "data"


def _check(bench: Bench, adapter: str, path: str, part: str = "") -> Ran:
    ran = bench.cli("datasets", "check", adapter, f"{_data(bench) / path}{part}")
    assert ran.code == 2, ran.text
    return ran


def _mend(bench: Bench, adapter: str, path: str, part: str = "") -> Ran:
    """Run the command of the hint, and open what it says to use."""
    ran = _check(bench, adapter, path, part)
    with pytest.raises(DataError) as error:  # its hint has whole paths
        open_dataset(f"{adapter}:{_data(bench) / path}{part}")
    match = re.search(r"(?:run|own:) (.*)(?: and|; then) use (.*)$", error.value.hint)
    assert match, error.value.hint
    subprocess.run(match[1], shell=True, check=True)
    assert len(open_dataset(*shlex.split(match[2]))) == 1
    return ran


@case(KIND, "Cityscapes: both archives unpacked, each in a folder of its own")
def two_zips(bench: Bench) -> object:
    _city(_data(bench) / "leftImg8bit_trainvaltest", _data(bench) / "gtFine_trainvaltest")
    return _mend(bench, "cityscapes", "", "@val")


@case(KIND, "Cityscapes: the same, and the folder of the images is named")
def two_zips_images(bench: Bench) -> object:
    _city(_data(bench) / "all/leftImg8bit_trainvaltest", _data(bench) / "all/gtFine_trainvaltest")
    return _mend(bench, "cityscapes", "all/leftImg8bit_trainvaltest", "@val")


@case(KIND, "Cityscapes: leftImg8bit/leftImg8bit and gtFine/gtFine")
def nested_twice(bench: Bench) -> object:
    _city(_data(bench) / "leftImg8bit", _data(bench) / "gtFine")
    return _mend(bench, "cityscapes", "", "@val")


@case(KIND, "Cityscapes: the path ends in leftImg8bit")
def too_deep(bench: Bench) -> object:
    _city(_data(bench) / "cities", _data(bench) / "cities")
    return _check(bench, "cityscapes", "cities/leftImg8bit", "@val")


@case(KIND, "Cityscapes: only the archive of the images is unpacked")
def one_zip(bench: Bench) -> object:
    write_image(_data(bench) / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png")
    (_data(bench) / "gtFine_trainvaltest.zip").write_bytes(b"PK")
    return _check(bench, "cityscapes", "", "@val")


@case(KIND, "Cityscapes: the path is the zip itself")
def the_zip(bench: Bench) -> object:
    (_data(bench) / "leftImg8bit_trainvaltest.zip").write_bytes(b"PK")
    return _check(bench, "cityscapes", "leftImg8bit_trainvaltest.zip", "@val")


@case(KIND, "Cityscapes: labels are colours and instances alone")
def no_ids(bench: Bench) -> object:
    _city(_data(bench), _data(bench), kind="color")
    return _check(bench, "cityscapes", "", "@val")


@case(KIND, "ACDC: both archives unpacked, each in a folder of its own")
def acdc(bench: Bench) -> object:
    write_image(_data(bench) / "rgb_anon_trainvaltest/rgb_anon/night/val/a/1_rgb_anon.png")
    write_values(_data(bench) / "gt_trainval/gt/night/val/a/1_gt_labelTrainIds.png", [7])
    return _mend(bench, "acdc", "", "@night/val")


@case(KIND, "BDD100K: images and labels unpacked in two folders with spaces in their names")
def bdd100k(bench: Bench) -> object:
    write_image(_data(bench) / "bdd images/bdd100k/images/10k/val/1.jpg")
    write_values(_data(bench) / "bdd labels/bdd100k/labels/sem_seg/masks/val/1.png", [7])
    return _mend(bench, "bdd100k", "", "@val")


@case(KIND, "BDD100K: the 100k images, whose labels are boxes")
def bdd100k_boxes(bench: Bench) -> object:
    write_image(_data(bench) / "images/100k/val/1.jpg")
    write_values(_data(bench) / "labels/sem_seg/masks/val/1.png", [7])
    return _check(bench, "bdd100k", "", "@val")


@case(KIND, "GTAV: ten archives unpacked in ten folders")
def gtav(bench: Bench) -> object:
    for index in (1, 2):
        write_image(_data(bench) / f"0{index}_images/images/0000{index}.png")
        write_values(_data(bench) / f"0{index}_labels/labels/0000{index}.png", [7])
    return _check(bench, "gtav", "")


@case(KIND, "Mapillary: labels of version 2.0 alone")
def mapillary(bench: Bench) -> object:
    write_image(_data(bench) / "validation/images/1.jpg")
    write_values(_data(bench) / "validation/v2.0/labels/1.png", [7])
    return _check(bench, "mapillary", "", "@val")


@case(KIND, "folder: splits below images and labels, as detectors want them")
def folder_splits(bench: Bench) -> object:
    for split in ("train", "val"):
        write_image(_data(bench) / f"images/{split}/1.png")
        write_values(_data(bench) / f"labels/{split}/1.png", [0, 1])
    return _mend(bench, "folder", "")


@case(KIND, "folder: train/images, train/labels, val/images and val/labels")
def folder_of_splits(bench: Bench) -> object:
    for split in ("train", "val"):
        write_image(_data(bench) / f"{split}/images/1.png")
        write_values(_data(bench) / f"{split}/labels/1.png", [0])
    return _check(bench, "folder", "")
