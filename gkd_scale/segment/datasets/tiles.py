"""Potsdam's and Vaihingen's tiles to crops of 512 pixels, named as MMSegmentation's converters name them.

Crops lie side by side; those at the right and lower border are moved inwards to lie within the tile. A
6000-pixel tile gives 12 x 12 crops, so Potsdam gives 3456 for training and 2016 for validation. Labels
become indices: 0 boundary, then the six classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gkd_scale import files
from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.isprs import ENCODING_6
from gkd_scale.segment.datasets.labels import image_size, read_image, require_same_size
from gkd_scale.types import IGNORE, Size, UInt8Array

CROP = 512
TOLERANCE = 16
"""How far a channel may be from 0 or 255, as it is in a few pixels of the published labels."""

Box = tuple[int, int, int, int]
"""Left, top, right, lower."""


@dataclass(frozen=True)
class Originals:
    """The tiles of a dataset. Patterns match file names; group 1 is the tile, group 2 the colour space.

    If image and label have one name, images lie in a folder called ``image_folder``.
    """

    image: str
    label: str
    spaces: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    image_folder: str | None = None


def _grid(rows: dict[int, range]) -> tuple[str, ...]:
    return tuple(f"{row}_{column}" for row, columns in rows.items() for column in columns)


def _areas(*numbers: int) -> tuple[str, ...]:
    return tuple(map(str, numbers))


_AREA = r"top_mosaic_09cm_area(\d+)\.tif"

ORIGINALS = {
    "potsdam": Originals(
        image=r"top_potsdam_(\d+_\d+)_(RGB|IRRG)\.tif",
        label=r"top_potsdam_(\d+_\d+)_label\.tif",
        spaces=("RGB", "IRRG"),
        splits={
            "train": _grid({**dict.fromkeys((2, 3, 4, 5), range(10, 13)), 6: range(7, 13), 7: range(7, 13)}),
            "val": _grid(
                {**dict.fromkeys((2, 3), range(13, 15)), **dict.fromkeys((4, 5, 6), range(13, 16))}
                | {7: range(13, 14)}
            ),
        },
    ),
    "vaihingen": Originals(
        image=_AREA,
        label=_AREA,
        spaces=("",),
        splits={
            "train": _areas(1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37),
            "val": _areas(2, 4, 6, 8, 10, 12, 14, 16, 20, 22, 24, 27, 29, 31, 33, 35, 38),
        },
        image_folder="top",
    ),
}
"""The originals by name, with the splits of MMSegmentation, which the paper uses."""


class Tile(NamedTuple):
    """One tile in one colour space ("" if there is only one)."""

    name: str
    space: str
    split: str
    image: Path
    label: Path


class Tiles(NamedTuple):
    """The tiles with image and label, and the names of missing tiles."""

    tiles: list[Tile]
    missing: list[str]


def find(originals: Originals, root: Path) -> Tiles:
    """The tiles anywhere below ``root``; DataError if there is none with its label."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", "name the folder that the archives were unpacked in")
    images: dict[tuple[str, str], Path] = {}
    labels: dict[str, Path] = {}
    for path in sorted(root.rglob("*.tif")):
        image, label = re.fullmatch(originals.image, path.name), re.fullmatch(originals.label, path.name)
        if image and originals.image_folder in (None, path.parent.name):
            space = image[2] if len(image.groups()) > 1 else ""
            images.setdefault((image[1], space), path)
        elif label:
            labels.setdefault(label[1], path)
    tiles, missing = [], []
    for split, names in originals.splits.items():
        for name in names:
            spaces = [space for space in originals.spaces if (name, space) in images and name in labels]
            tiles += [Tile(name, space, split, images[name, space], labels[name]) for space in spaces]
            if not spaces:
                missing.append(name)
    if not tiles:
        raise DataError(
            f"{root} holds no tile with its label ({originals.image} and {originals.label})",
            "unpack the archives of images and of labels below it",
        )
    return Tiles(tiles, missing)


def boxes(size: Size, crop: int = CROP) -> list[Box]:
    """Crops that cover an image of ``size`` (H, W), row by row; smaller than ``crop`` only if it is."""
    rows, columns = (
        [max(0, min(index * crop, side - crop)) for index in range(max(1, ceil(side / crop)))]
        for side in size
    )
    return [
        (left, top, min(left + crop, size[1]), min(top + crop, size[0])) for top in rows for left in columns
    ]


def work(
    tile: Tile, out: Path, encode: Callable[[UInt8Array], bytes]
) -> tuple[Callable[[], bool], Callable[[], None]]:
    """Two functions: one says if all crops of a tile exist below ``out``, one writes the missing ones."""

    def missing() -> list[tuple[Box, Path, Path]]:
        crops = []
        for box in boxes(image_size(tile.image)):
            name = "_".join([tile.name, *map(str, box)]) + ".png"
            pair = [out / tile.space / kind / tile.split / name for kind in ("img_dir", "ann_dir")]
            if not all(path.is_file() for path in pair):
                crops.append((box, pair[0], pair[1]))
        return crops

    def run() -> None:
        image, label = read_image(tile.image), read_image(tile.label)
        require_same_size(image.shape[:2], label.shape[:2], (tile.image, tile.label))
        for (left, top, right, lower), to_image, to_label in missing():
            files.write_bytes(to_image, encode(image[top:lower, left:right]))
            files.write_bytes(to_label, encode(to_indices(label[top:lower, left:right], tile.label)))

    return lambda: not missing(), run


def to_indices(colours: UInt8Array, path: Path) -> UInt8Array:
    """Part of a label in colours (H, W, 3) as (H, W) 0 for the boundary, 1 to 6 for the classes.

    DataError for another colour; ``path`` is the label's.
    """
    pure = np.where(colours <= TOLERANCE, 0, np.where(colours >= 255 - TOLERANCE, 255, colours))
    train_ids = ENCODING_6.decode(pure, path)
    return np.where(train_ids == IGNORE, 0, train_ids + 1).astype(np.uint8)
