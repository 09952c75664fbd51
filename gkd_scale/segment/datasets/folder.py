"""A folder of images and labels: ``images/*`` and ``labels/*.png`` with the same stems.

Label values are class ids, 255 is ignored. ``classes.txt`` holds one class name a line; without it
the classes are 0 up to the greatest value found. Pairs and sizes are checked when the folder is
opened, from file headers alone; label values when a label is read. Other adapters of this layout
reuse :class:`FolderDataset` with a label set of their own.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from gkd_scale.errors import DataError
from gkd_scale.types import IGNORE, SegSample, Size, UInt8Array

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)
_HEADER_THREADS = 8
_FORBIDDEN = 254

Pair = tuple[Path, Path]
"""An image and its label."""


@dataclass(frozen=True)
class LabelSet:
    """Class names, their colours, and the stored values that mean something else than themselves."""

    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    remap: dict[int, int] = field(default_factory=dict)

    def table(self) -> UInt8Array:
        """(256,) stored value to train id; 254 marks values that must not occur."""
        table = np.full(256, _FORBIDDEN, np.uint8)
        table[: len(self.classes)] = np.arange(len(self.classes))
        table[IGNORE] = IGNORE
        for stored, train in self.remap.items():
            table[stored] = train
        return table


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """``count`` distinct colours: hues a golden ratio apart, three brightnesses."""
    colours = []
    for index in range(count):
        rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, (0.95, 0.75, 0.55)[index % 3])
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return colours


def open_dataset(root: Path) -> FolderDataset:
    """The ``folder`` adapter."""
    pairs = find_pairs(root)
    names = read_classes(root / "classes.txt")
    if names is None:
        names = [str(value) for value in range(_greatest_value(pairs) + 1)]
    return FolderDataset(root, LabelSet(names, default_palette(len(names))), pairs)


class FolderDataset:
    """Image and label files of one domain; see the module's text. Raises DataError."""

    def __init__(self, root: Path, labels: LabelSet, pairs: Sequence[Pair] | None = None) -> None:
        self.name = root.name
        self.root = root
        self.classes = list(labels.classes)
        self.palette = list(labels.palette)
        self._pairs = list(pairs) if pairs is not None else find_pairs(root)
        self._table = labels.table()
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            list(pool.map(_check_sizes, self._pairs))

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> SegSample:
        image_path, label_path = self._pairs[index]
        return SegSample(image_path.stem, read_image(image_path), self._read_label(label_path))

    def _read_label(self, path: Path) -> UInt8Array:
        stored = read_label(path)
        label = self._table[stored]
        if (label == _FORBIDDEN).any():
            value = int(stored[label == _FORBIDDEN][0])
            known = len(self.classes)
            raise DataError(
                f"{path}: label value {value} is outside the {known} classes "
                f"(0 to {known - 1}, and {IGNORE} for ignored)",
                "correct the label, or the class list (classes.txt) if the class is missing there",
            )
        return label


def find_pairs(root: Path) -> list[Pair]:
    """(image, label) files of ``root``, sorted by stem; DataError where one has no partner."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", "check the path after ADAPTER:")
    images = _by_stem(root / "images", IMAGE_SUFFIXES)
    labels = _by_stem(root / "labels", {".png"})
    _require_partner(images, labels, root / "labels", "label", ".png")
    _require_partner(labels, images, root / "images", "image", "")
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def _by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    if not folder.is_dir():
        inside = sorted(path.name for path in folder.parent.iterdir() if (path / folder.name).is_dir())
        hint = f"one of its folders? {', '.join(inside[:8])}" if inside else "expected images/ and labels/"
        raise DataError(f"{folder.parent} has no folder {folder.name}/", hint)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DataError(f"{found[path.stem]} and {path} have the same stem", "remove or rename one")
        found[path.stem] = path
    if not found:
        raise DataError(f"{folder} holds no file of {', '.join(sorted(suffixes))}", "put the dataset there")
    return found


def _require_partner(
    have: dict[str, Path], partner: dict[str, Path], folder: Path, kind: str, suffix: str
) -> None:
    alone = sorted(set(have) - set(partner))
    if alone:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise DataError(
            f"{have[alone[0]]} has no {kind} {folder / (alone[0] + (suffix or '.*'))}{more}",
            f"add the {kind} or remove the file: stems of images/ and labels/ must be equal",
        )


def read_classes(path: Path) -> list[str] | None:
    """The class names in ``classes.txt``, one a line; None where there is no such file."""
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice or len(names) > _FORBIDDEN:
        what = f"names '{twice[0]}' twice" if twice else f"holds {len(names)} names"
        raise DataError(f"{path} {what}", f"write 1 to {_FORBIDDEN} different names, one a line")
    return names


def read_image(path: Path) -> UInt8Array:
    """(H, W, 3) uint8 RGB; DataError where the file cannot be decoded."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def read_label(path: Path) -> UInt8Array:
    """(H, W) uint8 as stored (indices of a palette PNG); DataError for colours and for values over 255."""
    try:
        with Image.open(path) as image:
            mode, stored = image.mode, np.asarray(image)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if stored.ndim != 2:
        raise DataError(
            f"{path} has mode {mode}: a label has one channel of class ids",
            "store class ids as an 8-bit greyscale or palette PNG, not colours",
        )
    if stored.dtype != np.uint8 and (stored.min() < 0 or stored.max() > 255):
        value = int(stored.max() if stored.max() > 255 else stored.min())
        raise DataError(f"{path}: label value {value} is not in 0 to 255", "store class ids, 255 for ignored")
    return stored.astype(np.uint8, copy=False)


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path} cannot be read: {error}", "restore the file, or remove it and its partner")


def _header_size(path: Path) -> Size:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _check_sizes(pair: Pair) -> None:
    image, label = (_header_size(path) for path in pair)
    if image != label:
        raise DataError(
            f"{pair[1]} is {label[0]}x{label[1]} (HxW) but its image {pair[0]} is {image[0]}x{image[1]}",
            "labels must have the size of their images",
        )


def _greatest_value(pairs: Sequence[Pair]) -> int:
    def greatest(path: Path) -> int:
        label = read_label(path)
        valid = label[label != IGNORE]
        return int(valid.max()) if valid.size else -1

    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        value = max(pool.map(greatest, [label for _, label in pairs]))
    if value < 0:
        raise DataError(
            f"{pairs[0][1].parent}: no label has a class, all pixels are {IGNORE}", "check the labels"
        )
    if value >= _FORBIDDEN:
        raise DataError(
            f"{pairs[0][1].parent}: label value {value} is neither a class nor {IGNORE}",
            f"class ids go from 0 to {_FORBIDDEN - 1}",
        )
    return value
