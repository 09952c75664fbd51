"""The folder adapter: what it reads, and what it says about every kind of bad folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.labels import default_palette
from gkd_scale.segment.datasets.registry import check, open_dataset
from gkd_scale.types import IGNORE

from ..support import CLASSES, Blocks, write_folder  # noqa: TID252


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "town", Blocks(3, [(20, 30), (25, 25)]))


def label_of(root: Path, name: str = "001") -> Path:
    return root / "labels" / f"{name}.png"


def refuse(root: Path, *parts: str) -> None:
    """Opening and reading ``root`` raises a DataError that has all ``parts`` and a next step."""
    with pytest.raises(DataError) as error:
        check(open_dataset(f"folder:{root}"), workers=2)
    assert error.value.hint
    for part in parts:
        assert part in str(error.value)


def test_reads_what_was_written(root: Path) -> None:
    dataset = open_dataset(f"folder:{root}")
    assert dataset.name == "town" and list(dataset.classes) == list(CLASSES) and len(dataset) == 3
    assert len(dataset.palette) == len(CLASSES)
    for index, sample in enumerate(Blocks(3, [(20, 30), (25, 25)]).samples):
        assert dataset[index].name == sample.name
        np.testing.assert_array_equal(dataset[index].image, sample.image)
        np.testing.assert_array_equal(dataset[index].label, sample.label)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".bmp", ".tiff", ".png"])
def test_image_formats(root: Path, suffix: str) -> None:
    for file in sorted((root / "images").iterdir()):
        with Image.open(file) as image:
            copy = image.copy()
        file.unlink()
        copy.save(file.with_suffix(suffix))
    check(open_dataset(f"folder:{root}"), workers=0)


def test_grey_and_transparent_images_become_rgb(root: Path) -> None:
    for mode, name in (("L", "000"), ("RGBA", "001")):
        with Image.open(root / "images" / f"{name}.png") as image:
            image.convert(mode).save(root / "images" / f"{name}.png")
    dataset = open_dataset(f"folder:{root}")
    assert dataset[0].image.shape == (20, 30, 3) and dataset[1].image.shape == (25, 25, 3)


def test_palette_labels_are_indices(root: Path) -> None:
    with Image.open(label_of(root)) as image:
        ids = np.asarray(image)
    palette = Image.fromarray(ids)
    palette.putpalette([channel for colour in default_palette(256) for channel in colour])
    palette.save(label_of(root))
    with Image.open(label_of(root)) as image:
        assert image.mode == "P"
    np.testing.assert_array_equal(open_dataset(f"folder:{root}")[1].label, ids)


def test_without_a_class_list_classes_are_the_values_found(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", Blocks(3), classes=False)
    assert list(open_dataset(f"folder:{root}").classes) == ["0", "1", "2", "3"]


def test_void_everywhere_has_no_classes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "x", Blocks(1), classes=False)
    Image.fromarray(np.full((32, 48), IGNORE, np.uint8)).save(label_of(root, "000"))
    refuse(root, "no label has a class")


def test_missing_folder(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "there is no folder")


def test_missing_half(root: Path) -> None:
    (root / "labels").rename(root / "masks")
    refuse(root, str(root), "no folder labels/")


def test_a_folder_of_domains_names_them(root: Path) -> None:
    refuse(root.parent, "no folder images/", "town")


def test_empty_folder(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    refuse(tmp_path, str(tmp_path / "images"), "holds no file")


def test_image_without_label(root: Path) -> None:
    label_of(root).unlink()
    refuse(root, "images/001.png", "no label", "labels/001.png")


def test_label_without_image(root: Path) -> None:
    (root / "images" / "002.png").unlink()
    refuse(root, "labels/002.png", "no image")


def test_two_images_of_one_stem(root: Path) -> None:
    (root / "images" / "000.jpg").write_bytes((root / "images" / "000.png").read_bytes())
    refuse(root, "000.jpg", "000.png", "same stem")


def test_size_mismatch(root: Path) -> None:
    Image.fromarray(np.zeros((20, 31), np.uint8)).save(label_of(root, "000"))
    refuse(root, "labels/000.png", "20x31", "20x30")


def test_value_outside_the_classes(root: Path) -> None:
    label = np.zeros((25, 25), np.uint8)
    label[3, 4] = 7
    Image.fromarray(label).save(label_of(root))
    refuse(root, "labels/001.png", "label value 7", "4 classes", "classes.txt")


@pytest.mark.parametrize("value", [4, 200, 254])
def test_only_255_is_ignored(root: Path, value: int) -> None:
    Image.fromarray(np.full((25, 25), value, np.uint8)).save(label_of(root))
    refuse(root, f"label value {value}")


def test_sixteen_bit_values(root: Path) -> None:
    label = np.zeros((25, 25), np.uint16)
    Image.fromarray(label).save(label_of(root))
    check(open_dataset(f"folder:{root}"), workers=0)
    label[0, 0] = 1000
    Image.fromarray(label).save(label_of(root))
    refuse(root, "labels/001.png", "1000")


def test_coloured_label(root: Path) -> None:
    Image.fromarray(np.zeros((25, 25, 3), np.uint8)).save(label_of(root))
    refuse(root, "labels/001.png", "RGB", "one channel")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_truncated_file(root: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 4, (25, 25), dtype=np.uint8)
    file = root / kind / "001.png"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:-60])
    refuse(root, f"{kind}/001.png", "cannot be read")


def test_not_an_image(root: Path) -> None:
    (root / "images" / "001.png").write_text("hello")
    refuse(root, "images/001.png", "cannot be read")


@pytest.mark.parametrize(("text", "message"), [("", "0 names"), ("a\nb\na\n", "'a' twice")])
def test_bad_class_list(root: Path, text: str, message: str) -> None:
    (root / "classes.txt").write_text(text)
    refuse(root, "classes.txt", message)


def test_default_colours_differ() -> None:
    assert len(set(default_palette(40))) == 40


def test_more_values_can_be_ignored(root: Path) -> None:
    ids = open_dataset(f"folder:{root}")[1].label
    (root / "ignore.txt").write_text("0\n7\n")
    label = open_dataset(f"folder:{root}")[1].label
    np.testing.assert_array_equal(label, np.where(ids == 0, IGNORE, ids))
    (root / "classes.txt").unlink()
    (root / "ignore.txt").write_text("3\n")
    assert len(open_dataset(f"folder:{root}").classes) == 3
    (root / "ignore.txt").write_text("void\n")
    refuse(root, "ignore.txt holds 'void'")


def test_classes_that_no_label_holds_can_be_named(root: Path) -> None:
    assert list(open_dataset(f"folder:{root}").absent) == []
    (root / "absent.txt").write_text(f"{CLASSES[2]}\n")
    assert list(open_dataset(f"folder:{root}").absent) == [CLASSES[2]]
    (root / "absent.txt").write_text("gren\n")
    refuse(root, "absent.txt names 'gren'", "did you mean 'green'")
