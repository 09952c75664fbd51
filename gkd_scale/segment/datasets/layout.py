"""A dataset's files: two patterns whose stars match the same in an image and its label.

``leftImg8bit/{part}/*/*_leftImg8bit`` and ``gtFine/{part}/*/*_gtFine_labelIds`` pair
``leftImg8bit/val/ulm/ulm_7_leftImg8bit.png`` with ``gtFine/val/ulm/ulm_7_gtFine_labelIds.png``: the stars
are ``("ulm", "ulm_7")`` in both. Patterns end before the file name's suffix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.labels import Encoding
from gkd_scale.text import nfc, quote

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
LABEL_SUFFIXES = frozenset({".png"})

Pair = tuple[Path, Path]
"""An image and its label."""

Key = tuple[str, ...]
"""The matches of a pattern's stars."""


@dataclass(frozen=True)
class Layout:
    """Patterns of images and labels below the root, and the encoding of the labels' values."""

    images: str
    labels: str
    encoding: Encoding


class Lonely(NamedTuple):
    """A file without its partner, an image or a label (``lacks``), which would lie at ``partner``."""

    path: Path
    lacks: str
    partner: Path

    def __str__(self) -> str:
        return f"{self.path} has no {self.lacks} {self.partner}"


class Files(NamedTuple):
    """The files of one part: pairs in the order of their keys, files without a partner, files to skip."""

    layout: Layout
    pairs: list[Pair]
    lonely: list[Lonely]
    left_out: list[Path]


def look(root: Path, folder: str, layout: Layout, skip: frozenset[Key] = frozenset()) -> Files:
    """The files of ``layout`` in ``root``; images and labels of ``skip`` are left out.

    DataError if a folder is missing or empty, or if two files have one key.
    """
    image_pattern, label_pattern = layout.images.format(part=folder), layout.labels.format(part=folder)
    images = _files(root, image_pattern, IMAGE_SUFFIXES)
    labels = _files(root, label_pattern, LABEL_SUFFIXES)
    both = sorted(images.keys() & labels.keys())
    lonely = [
        Lonely(images[key], "label", root / f"{_fill(label_pattern, key)}.png")
        for key in sorted(images.keys() - labels.keys())
    ] + [
        Lonely(labels[key], "image", root / f"{_fill(image_pattern, key)}.*")
        for key in sorted(labels.keys() - images.keys())
    ]
    return Files(
        layout,
        [(images[key], labels[key]) for key in both if key not in skip],
        lonely,
        [images[key] for key in both if key in skip],
    )


def absence(root: Path, folder: str, layout: Layout) -> DataError:
    """The error for the missing images of ``layout`` in ``root``, else for its missing labels."""
    images, labels = layout.images.format(part=folder), layout.labels.format(part=folder)
    if any_file(root, images, IMAGE_SUFFIXES):
        return _no_files(root, labels, LABEL_SUFFIXES)
    return _no_files(root, images, IMAGE_SUFFIXES)


def require_partners(files: Files) -> None:
    """DataError that names the first file without its label or image."""
    if files.lonely:
        first, count = files.lonely[0], len(files.lonely)
        raise DataError(f"{first}" + (f" (and {count - 1} more)" if count > 1 else ""), partner_hint(files))


def partner_hint(files: Files) -> str:
    """What to do about the first file without a partner; rename one if a name contains another."""
    first = files.lonely[0]
    stem = first.path.stem.lower()
    near = [
        other
        for other in files.lonely
        if other.lacks != first.lacks and (stem in other.path.stem.lower() or other.path.stem.lower() in stem)
    ]
    if not near:
        return f"add the {first.lacks} or remove the file"
    other = min(near, key=lambda candidate: abs(len(candidate.path.stem) - len(stem)))
    image, label = (first, other) if first.lacks == "label" else (other, first)
    return f"an image and its label have one name: rename {label.path} to {image.partner.name}"


def exists(root: Path, folder: str, layout: Layout, of_both: Callable[[Iterable[bool]], bool] = all) -> bool:
    """Whether this layout has an image and a label; with ``any``, whether it has one of the two."""
    patterns = (layout.images, IMAGE_SUFFIXES), (layout.labels, LABEL_SUFFIXES)
    return of_both(any_file(root, pattern.format(part=folder), suffixes) for pattern, suffixes in patterns)


def any_file(root: Path, pattern: str, suffixes: frozenset[str]) -> bool:
    """Whether a file of ``pattern`` is below ``root``."""
    return any(True for _ in _walk(root, pattern, suffixes))


def keys(root: Path, pattern: str, suffixes: frozenset[str]) -> set[Key]:
    """The matches of the stars of ``pattern`` below ``root``."""
    return {key for key, _ in _walk(root, pattern, suffixes)}


def _files(root: Path, pattern: str, suffixes: frozenset[str]) -> dict[Key, Path]:
    paths: dict[Key, Path] = {}
    for key, path in _walk(root, pattern, suffixes):
        if key in paths:
            raise _same_stem(paths[key], path)
        paths[key] = path
    if not paths:
        raise _no_files(root, pattern, suffixes)
    return paths


def _same_stem(one: Path, other: Path) -> DataError:
    names = f"{one} and {other}"
    if not one.name.isascii():  # perhaps one name in two Unicode forms
        names = f"{quote(one.name, other.name)} and {quote(other.name, one.name)} in {one.parent}"
    return DataError(f"{names} have the same stem", "remove or rename one")


def _walk(root: Path, pattern: str, suffixes: frozenset[str]) -> Iterator[tuple[Key, Path]]:
    """Files that match the pattern, with the matches of its stars."""
    *folders, last = pattern.split("/")
    places: list[tuple[Key, Path]] = [((), root)]
    for name in folders:
        if "*" in name:
            places = [
                (key + stars, below)
                for key, place in places
                for below in _children(place)
                if (stars := _match(name, below.name)) is not None and below.is_dir()
            ]
        else:
            places = [(key, place / name) for key, place in places]
    for key, place in places:
        for path in _children(place):
            stars = _match(last, path.stem)
            if stars is not None and path.suffix.lower() in suffixes:
                yield key + stars, path


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _fill(pattern: str, key: Key) -> str:
    for stars in key:
        pattern = pattern.replace("*", stars, 1)
    return pattern


def _match(pattern: str, name: str) -> Key | None:
    match = re.fullmatch(re.escape(pattern).replace(r"\*", "(.+)"), nfc(name))
    return match.groups() if match else None


def _no_files(root: Path, pattern: str, suffixes: frozenset[str]) -> DataError:
    """The error if nothing matches: a missing folder, or one without such files."""
    place, lacks = root, f"holds no file of {', '.join(sorted(suffixes))} ({pattern})"
    for name in pattern.split("/")[:-1]:
        if "*" in name:
            break
        if not (place / name).is_dir():
            lacks = f"has no folder {name}/"
            break
        place /= name
    suffix = next(iter(suffixes)) if len(suffixes) == 1 else ".*"
    return DataError(f"{place} {lacks}", f"expected {root / pattern}{suffix}; {_contents(place)}")


def _first_file(place: Path, depth: int = 6) -> Path | None:
    below = _children(place) if depth else []
    file = next((path for path in below if path.is_file()), None)
    return file or next((inner for path in below if (inner := _first_file(path, depth - 1))), None)


def _contents(place: Path) -> str:
    """The folders in ``place`` and a file in or below it, for comparison with the layout."""
    folders = [path.name for path in _children(place) if path.is_dir()]
    file = _first_file(place)
    below = f"there are the folders {', '.join(folders[:8])}" if folders else ""
    example = f"there is {file}" if file else ""
    return " and ".join(filter(None, (below, example))) or f"{place} is empty"
