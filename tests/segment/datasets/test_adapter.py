"""Every adapter on a miniature of its official layout: names, parts, label values, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.adapter import HELD_OUT
from gkd_scale.segment.datasets.mapillary import TO_19
from gkd_scale.segment.datasets.registry import ADAPTERS, open_dataset
from gkd_scale.types import IGNORE

from .miniature import write_array, write_image, write_png16, write_values

CITY_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    **{id: id - 13 for id in range(19, 29)},
    31: 16,
    32: 17,
    33: 18,
}
CITIES = {**dict.fromkeys(range(35), IGNORE), **CITY_IDS, 255: IGNORE}
TRAIN_IDS = {**{id: id for id in range(19)}, 255: IGNORE}
SYNTHIA = {
    3: 0,
    4: 1,
    2: 2,
    21: 3,
    5: 4,
    7: 5,
    15: 6,
    9: 7,
    6: 8,
    1: 10,
    10: 11,
    17: 12,
    8: 13,
    19: 15,
    12: 17,
    11: 18,
}
MAPILLARY = {id: train for train, ids in enumerate(TO_19.values()) for id in ids}
CROPS = {0: IGNORE, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5}
RESCUE = {7: 0, 8: 0, 2: 1, 3: 1, 4: 1, 5: 1, 9: 2, 6: 3, 0: 4, 1: 4, 10: 4}


class Case(NamedTuple):
    """``ref`` follows the root; ``values`` are all stored values and their ids, ``bad`` is none of them."""

    adapter: str
    ref: str
    image: str
    label: str
    values: dict[int, int]
    bad: int


CASES = [
    Case("gtav", "", "images/00001.png", "labels/00001.png", CITIES, 35),
    Case("urbansyn", "", "rgb/rgb_0001.png", "ss/ss_0001.png", {**TRAIN_IDS, 19: IGNORE}, 20),
    Case(
        "cityscapes",
        "@val",
        "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png",
        "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png",
        CITIES,
        35,
    ),
    Case(
        "cityscapes",
        "@train",
        "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png",
        "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png",
        TRAIN_IDS,
        19,
    ),
    Case(
        "bdd100k",
        "@val",
        "images/10k/val/7d06fefd-f7be05a6.jpg",
        "labels/sem_seg/masks/val/7d06fefd-f7be05a6.png",
        TRAIN_IDS,
        19,
    ),
    Case(
        "bdd100k", "@train", "seg/images/train/7d06.jpg", "seg/labels/train/7d06_train_id.png", TRAIN_IDS, 19
    ),
    Case(
        "mapillary",
        "@train",
        "training/images/_ab-C.jpg",
        "training/labels/_ab-C.png",
        {**dict.fromkeys(range(66), IGNORE), **MAPILLARY},
        66,
    ),
    Case(
        "mapillary",
        "@val",
        "validation/images/x.jpg",
        "validation/v1.2/labels/x.png",
        {**dict.fromkeys(range(66), IGNORE), **MAPILLARY},
        66,
    ),
    *(
        Case(
            "acdc",
            f"@{condition}/val",
            f"rgb_anon/{condition}/val/GOPR0122/GOPR0122_frame_000161_rgb_anon.png",
            f"gt/{condition}/val/GOPR0122/GOPR0122_frame_000161_gt_labelTrainIds.png",
            TRAIN_IDS,
            19,
        )
        for condition in ("fog", "night", "rain", "snow")
    ),
    Case(
        "potsdam_rgb",
        "@train",
        "RGB/img_dir/train/2_10_0_0_512_512.png",
        "RGB/ann_dir/train/2_10_0_0_512_512.png",
        CROPS,
        7,
    ),
    Case("potsdam_irrg", "@val", "IRRG/img_dir/val/2_13_0.png", "IRRG/ann_dir/val/2_13_0.png", CROPS, 7),
    Case(
        "potsdam_rgb_5",
        "@val",
        "RGB/img_dir/val/2_13_0.png",
        "RGB/ann_dir/val/2_13_0.png",
        {0: IGNORE, 1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 6: 4},
        7,
    ),
    Case("vaihingen_irrg", "@val", "img_dir/val/area2_0.png", "ann_dir/val/area2_0.png", CROPS, 7),
    Case(
        "rescuenet", "@test", "test/test-org-img/10778.jpg", "test/test-label-img/10778_lab.png", RESCUE, 11
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.adapter + case.ref)
def test_miniature(case: Case, tmp_path: Path) -> None:
    ref = f"{case.adapter}:{tmp_path}{case.ref}"
    write_image(tmp_path / case.image, (8, 12))
    ids = write_values(tmp_path / case.label, list(case.values), (8, 12))
    dataset = open_dataset(ref)
    assert len(dataset) == 1 and dataset[0].image.shape == (8, 12, 3)
    assert dataset.name == (f"{case.adapter}/{case.ref[1:]}" if case.ref else tmp_path.name)
    expected = np.vectorize(case.values.__getitem__)(ids)
    np.testing.assert_array_equal(dataset[0].label, expected)
    np.testing.assert_array_equal(dataset.label(0), expected)
    assert set(np.unique(expected)) <= {*range(len(dataset.classes)), IGNORE}

    write_values(tmp_path / case.label, [case.bad], (8, 12))
    with pytest.raises(DataError, match=f"label value {case.bad} "):
        dataset.label(0)
    write_image(tmp_path / case.image, (8, 11))
    write_values(tmp_path / case.label, [next(iter(case.values))], (8, 12))
    with pytest.raises(DataError, match="8x12"):
        dataset[0]
    (tmp_path / case.label).unlink()
    with pytest.raises(DataError):
        open_dataset(ref)


def test_every_adapter_is_tested_here_or_alone() -> None:
    alone = {"camvid", "embedded", "folder", "synthia"}
    assert {case.adapter for case in CASES} | alone == set(ADAPTERS)


def test_classes_and_colours() -> None:
    for adapter in ADAPTERS.values():
        classes, palette = adapter.labels
        assert len(classes) == len(palette) == len(set(classes)) == len(set(palette))
    streets = ("gtav", "synthia", "urbansyn", "cityscapes", "bdd100k", "mapillary", "acdc")
    assert len({tuple(ADAPTERS[name].labels.classes) for name in streets}) == 1
    assert ADAPTERS["acdc"].labels.classes[12:14] == ["rider", "car"]
    assert ADAPTERS["rescuenet"].labels == ADAPTERS["potsdam_rgb_5"].labels


def test_synthia_has_its_ids_in_the_first_of_three_sixteen_bit_channels(tmp_path: Path) -> None:
    void = [0, 13, 14, 16, 18, 20, 22]
    ids = np.resize(np.array([*SYNTHIA, *void], np.uint16), (6, 8))
    samples = np.stack([ids, np.full_like(ids, 700), np.zeros_like(ids)], axis=2)
    label = write_png16(tmp_path / "GT/LABELS/0000000.png", samples)
    write_image(tmp_path / "RGB/0000000.png")
    dataset = open_dataset(f"synthia:{tmp_path}")
    np.testing.assert_array_equal(dataset[0].label, np.vectorize(lambda id: SYNTHIA.get(id, IGNORE))(ids))
    absent = [dataset.classes[id] for id in range(19) if id not in SYNTHIA.values()]
    assert absent == list(ADAPTERS["synthia"].absent) == ["terrain", "truck", "train"]
    for bad in (23, 256 + 3):  # read in 8 bits, the second would be 1
        samples[0, 0, 0] = bad
        write_png16(label, samples)
        with pytest.raises(DataError, match=f"label value {bad} "):
            dataset.label(0)


def test_gtav_labels_in_colours_and_the_two_images_of_another_size(tmp_path: Path) -> None:
    colours = np.array([[(128, 64, 128), (0, 0, 142), (119, 11, 32), (81, 0, 81)]], np.uint8)
    for name in ("00001", "15188", "17705"):
        write_image(tmp_path / f"images/{name}.png", (1, 4))
        write_array(tmp_path / f"labels/{name}.png", colours)
    dataset = open_dataset(f"gtav:{tmp_path}")
    assert len(dataset) == 1
    np.testing.assert_array_equal(dataset[0].label, [[0, 13, 18, IGNORE]])


def test_potsdam_labels_in_colours(tmp_path: Path) -> None:
    colours = [
        (255, 255, 255),
        (0, 0, 255),
        (0, 255, 255),
        (0, 255, 0),
        (255, 255, 0),
        (255, 0, 0),
        (0, 0, 0),
    ]
    write_image(tmp_path / "RGB/img_dir/val/a.png", (1, 7))
    write_array(tmp_path / "RGB/ann_dir/val/a.png", np.array([colours], np.uint8))
    for adapter, expected in (
        ("potsdam_rgb", [0, 1, 2, 3, 4, 5, IGNORE]),
        ("potsdam_rgb_5", [0, 1, 2, 2, 3, 4, IGNORE]),
    ):
        np.testing.assert_array_equal(open_dataset(f"{adapter}:{tmp_path}@val").label(0), [expected])


def test_a_dataset_without_a_validation_split_holds_some_images_out(tmp_path: Path) -> None:
    for index in range(2 * HELD_OUT + 3):
        write_image(tmp_path / f"rgb/rgb_{index:04}.png", (1, 1))
        write_values(tmp_path / f"ss/ss_{index:04}.png", [0], (1, 1))

    def names(part: str) -> set[str]:
        dataset = open_dataset(f"urbansyn:{tmp_path}{part}")
        return {dataset[index].name for index in range(len(dataset))}

    train, val = names("@train"), names("@val")
    assert len(val) == 2 and not train & val and train | val == names("")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "gtFine").rename(root / "gt"), "no folder gtFine/"),
        (lambda root: (root / "leftImg8bit/val").rename(root / "leftImg8bit/vall"), "no folder val/"),
        (lambda root: root.rename(root.parent / "inner") and _nest(root), "use cityscapes:"),
        (
            lambda root: write_image(root / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png"),
            "bonn_1_gtFine_labelIds",
        ),
    ],
    ids=["labels", "split", "nested", "partner"],
)
def test_what_is_missing_is_named(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = tmp_path / "cities"
    write_image(root / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png")
    write_values(root / "gtFine/val/ulm/ulm_1_gtFine_labelIds.png", [7])
    assert len(open_dataset(f"cityscapes:{root}@val")) == 1
    spoil(root)
    with pytest.raises(DataError) as error:
        open_dataset(f"cityscapes:{root}@val")
    assert message in str(error.value)


def _nest(root: Path) -> None:
    root.mkdir()
    (root.parent / "inner").rename(root / "inner")
