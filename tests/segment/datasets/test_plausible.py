"""What labels give away: every finding, and none for labels that are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets import cityscapes, gtav, mapillary
from gkd_scale.segment.datasets.adapter import Adapter
from gkd_scale.segment.datasets.facts import facts_of
from gkd_scale.segment.datasets.labels import Encoding, identity
from gkd_scale.segment.datasets.plausible import Evidence, findings
from gkd_scale.segment.datasets.registry import check, glance, open_dataset
from gkd_scale.types import IGNORE, UInt8Array

from ..support import Blocks, blocks, write_folder  # noqa: TID252

SIZE = (96, 128)


def label(*values: int, seed: int = 0) -> UInt8Array:
    """Blocks of ``values``, all of which occur."""
    table = np.array([values[index % len(values)] for index in range(256)], np.uint8)
    ids: UInt8Array = table[blocks(SIZE, seed)]
    ids[: len(values), 0] = values
    return ids


def doubts(
    tmp_path: Path,
    labels: Sequence[UInt8Array],
    encoding: Encoding,
    names: int | None = None,
    **palettes: bytes,
) -> list[tuple[bool, str]]:
    """The findings of labels: whether an error, and the text."""
    classes = [f"c{index}" for index in range(names if names is not None else len(encoding.ids))]
    evidence = Evidence(encoding, classes)
    for number, each in enumerate(labels):
        path = tmp_path / f"{number}.png"
        image = Image.fromarray(each)
        if f"p{number}" in palettes:
            image.putpalette(palettes[f"p{number}"])
        image.save(path)
        evidence.look(each, path)
    return [(finding.error, finding.text) for finding in findings(evidence)]


def only(findings: list[tuple[bool, str]], error: bool, message: str) -> None:
    assert [each for each, _ in findings] == [error] and message in findings[0][1], findings


def test_right_labels_raise_no_doubt(tmp_path: Path) -> None:
    labels = [label(0, 1, 2, 3, IGNORE, seed=seed) for seed in range(5)]
    assert doubts(tmp_path, labels, identity(4)) == []
    assert doubts(tmp_path, [label(0, 1)], identity(2)) == []
    ids = [label(1, 4, 7, 8, 11, 21, 23, 26, seed=seed) for seed in range(5)]
    assert doubts(tmp_path, ids, cityscapes.ADAPTER.layouts[0].encoding, 19) == []


@pytest.mark.parametrize("names", [1, 2, 5])
def test_masks_of_0_and_255(tmp_path: Path, names: int) -> None:
    only(doubts(tmp_path, [label(0, 255)], identity(names)), True, "hold 0 and 255 alone")


def test_a_rare_second_class_is_not_overlooked(tmp_path: Path) -> None:
    mask = np.zeros((1024, 64), np.uint8)
    mask[0] = 255
    mask[3, 5] = 1
    facts = facts_of(mask, tmp_path / "x.png")
    assert facts is not None and facts.pixels[1] == 1


def test_one_class(tmp_path: Path) -> None:
    only(doubts(tmp_path, [label(0)], identity(1)), True, "hold one class, 'c0'")
    only(doubts(tmp_path, [label(2), label(2)], identity(5)), False, "show one of 5 classes, 'c2'")


def test_photographs(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 200, SIZE, dtype=np.uint8)
    texts = doubts(tmp_path, [photo], identity(254))
    assert texts[0][0] and "look like photographs" in texts[0][1]


@pytest.mark.parametrize("adapter", [cityscapes.ADAPTER, gtav.ADAPTER, mapillary.ADAPTER])
def test_train_ids_for_label_ids(tmp_path: Path, adapter: Adapter) -> None:
    encoding = adapter.layouts[0].encoding
    labels = [label(0, 2, 8, 10, 13, 255, seed=seed) for seed in range(3)]
    only(doubts(tmp_path, labels, encoding, 19), True, "hold train ids (values 0, 2, 8, 10, 13)")


def test_a_split_without_labels_is_no_error(tmp_path: Path) -> None:
    encoding = cityscapes.ADAPTER.layouts[0].encoding
    only(doubts(tmp_path, [label(0, 1, 3)], encoding, 19), False, "no pixel of the labels has a class")


def test_palettes_that_quantise_each_file(tmp_path: Path) -> None:
    red, green, blue = b"\xff\0\0", b"\0\xff\0", b"\0\0\xff"
    labels = [label(0, 1, 2, seed=seed) for seed in range(2)]
    result = doubts(tmp_path, labels, identity(3), p0=red + green + blue, p1=green + red + blue)
    assert (
        result[0][0]
        and "palettes that differ" in result[0][1]
        and "(255, 0, 0)" in result[0][1] + "(255, 0, 0)"
    )
    only(
        doubts(tmp_path, labels, identity(3), p0=red + green + blue, p1=b"\1\2\3\4\5\6\7\x08\x09"),
        False,
        "palettes differ from file to file: index 0 is (255, 0, 0)",
    )
    same = red + green + blue
    assert doubts(tmp_path, labels, identity(3), p0=same, p1=same + b"\7\7\7") == []
    black = bytes(3) * 2 + blue
    assert doubts(tmp_path, labels, identity(3), p0=black, p1=black + b"\7\7\7") == [], (
        "a colour at two indices"
    )


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([label(1, 2, 3)], False, "no label holds 0, the value of 'c0': the values are 1 to 3"),
        ([label(0, 1, seed=3)] * 4, False, "all 4 labels hold the same"),
        ([np.full(SIZE, value, np.uint8) for value in (0, 1, 0, 2)], False, "each label holds one value"),
        ([np.full(SIZE, 255, np.uint8)] * 30 + [label(0, 1)], False, "are 255, ignored"),
    ],
)
def test_doubts(tmp_path: Path, labels: list[UInt8Array], error: bool, message: str) -> None:
    only(doubts(tmp_path, labels, identity(4)), error, message)


def test_labels_that_were_jpeg_or_interpolated(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = np.where(random.random(SIZE) < 0.1, random.integers(0, 4, SIZE), label(0, 1, 2, 3))
    texts = [text for _, text in doubts(tmp_path, [noise.astype(np.uint8)], identity(4))]
    assert any("single pixels" in text for text in texts)


# --------------------------------------------------------------------------------- in the commands


def folder(tmp_path: Path, labels: Sequence[UInt8Array], classes: str | None = None) -> Path:
    root = tmp_path / "town"
    for number, each in enumerate(labels):
        for kind, pixels in (("images", np.stack([each] * 3, -1)), ("labels", each)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"{number}.png")
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return root


@pytest.mark.parametrize("values", [(0, 255), (0, 17, 34, 187), (0, 22, 34, 90, 185), (0,), (244, 250, 254)])
def test_classes_are_not_made_of_values_that_are_no_ids(tmp_path: Path, values: tuple[int, ...]) -> None:
    root = folder(tmp_path, [label(*values)])
    with pytest.raises(DataError) as error:
        open_dataset(f"folder:{root}")
    assert str(root / "labels") in error.value.message and error.value.hint


def test_values_that_are_ignored_are_not_judged(tmp_path: Path) -> None:
    root = folder(tmp_path, [label(0, 1, 200)])
    with pytest.raises(DataError, match="far apart"):
        open_dataset(f"folder:{root}")
    (root / "ignore.txt").write_text("200\n")
    dataset = open_dataset(f"folder:{root}")
    check(dataset, 0)
    assert list(dataset.classes) == ["0", "1"]


def test_named_classes_are_checked_before_training_and_by_a_glance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path, [label(0, 255)], "ground\nhouse\n")
    dataset = open_dataset(f"folder:{root}")
    for look in (lambda: check(dataset, 0), lambda: glance(dataset)):
        with pytest.raises(DataError, match="0 and 255 alone"):
            look()
    many = open_dataset(f"folder:{folder(tmp_path, [label(0, 255, seed=seed) for seed in range(40)])}")
    glance(many)
    assert "warning" in capsys.readouterr().out.replace("\n", ""), "not all were read"


def test_one_named_class_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, [label(0, 255)], "house\n")
    with pytest.raises(DataError, match="one class, 'house'"):
        check(open_dataset(f"folder:{root}"), 0)


def test_a_mask_of_another_name_is_the_cause(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "town", Blocks(11))
    for path in sorted((root / "labels").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    with pytest.raises(DataError) as error:
        open_dataset(f"folder:{root}")
    assert error.value.hint.endswith("rename " + str(root / "labels/000_mask.png") + " to 000.png")
