"""Finds a dataset's files outside of its layout: archives unpacked side by side, or not unpacked.

Only used if the layout has no files. It looks two folders deep below the given path, in the folders beside
it, and above it if the path ends inside the dataset.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.layout import IMAGE_SUFFIXES, LABEL_SUFFIXES, Layout, any_file, keys

_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_MOST = 2000
_DEPTH = 2
_LIMIT = 4


def explain(name: str, root: Path, part: str, folder: str, layouts: Sequence[Layout]) -> DataError | None:
    """An error that says where images and labels of a part are, and what to do; None if they are nowhere.

    ``name`` is the adapter's, ``part`` follows @, ``folder`` is the part's name in ``layouts``.
    """
    at = f"@{part}" if part else ""
    for layout in layouts:
        images, labels = layout.images.format(part=folder), layout.labels.format(part=folder)
        places = _places(root, (images, labels))
        with_images = [place for place in places if any_file(place, images, IMAGE_SUFFIXES)]
        with_labels = [place for place in places if any_file(place, labels, LABEL_SUFFIXES)]
        both = [place for place in with_images if place in with_labels]
        if both:
            return _elsewhere(name, root, at, (images, labels), both)
        if bool(with_images) != bool(with_labels):
            beside = _partners(root, (images, labels), places, (with_images, with_labels))
            with_images, with_labels = with_images or beside, with_labels or beside
        if with_images and with_labels:
            return _apart(name, root, at, (images, labels), with_images, with_labels)
        if splits := _splits(root, (images, labels)):
            return _inside_out(name, root, (images, labels), splits)
    return _archive_error(root)


def _elsewhere(
    name: str, root: Path, at: str, patterns: tuple[str, str], places: Sequence[Path]
) -> DataError:
    """The error if other folders than ``root`` have images and labels."""
    more = f" (and {len(places) - _LIMIT} more)" if len(places) > _LIMIT else ""
    where = ", ".join(map(str, places[:_LIMIT])) + more
    refs = ", ".join(_command(f"{name}:{place}{at}") for place in places[:_LIMIT]) + more
    single = len(places) == 1
    first = patterns[0].split("/")[0]
    lacks = "nothing to use in" if (root / first).is_dir() else "no folder"
    return DataError(
        f"{root} has {lacks} {first}/, but {where} {'has' if single else 'have'} images and labels",
        f"use {refs}" if single else f"name one of its folders, or each by itself: {refs}",
    )


def _splits(root: Path, patterns: tuple[str, str]) -> list[str]:
    """Names of folders that lie in both ``images`` and ``labels`` and hold the files of these."""
    images, labels = (root.joinpath(*_literal(pattern)) for pattern in patterns)
    images_in, labels_in = (pattern.split("/")[-1] for pattern in patterns)
    return [
        below.name
        for below in islice(_children(images), _MOST)
        if any_file(below, images_in, IMAGE_SUFFIXES)
        and any_file(labels / below.name, labels_in, LABEL_SUFFIXES)
    ]


def _inside_out(name: str, root: Path, patterns: tuple[str, str], splits: list[str]) -> DataError:
    """The error for images/SPLIT and labels/SPLIT instead of SPLIT/images and SPLIT/labels."""
    images, labels = (root.joinpath(*_literal(pattern)) for pattern in patterns)
    split = root / splits[0]
    links = " && ".join(
        _command("ln", "-s", (kind / splits[0]).absolute(), split / kind.relative_to(root))
        for kind in (images, labels)
    )
    make, ref = _command("mkdir", split), _command(f"{name}:{split}")
    return DataError(
        f"{images} and {labels} hold folders ({', '.join(splits[:_LIMIT])}), not files",
        f"make each a folder of its own: {make} && {links}; then use {ref}",
    )


def _apart(
    name: str,
    root: Path,
    at: str,
    patterns: tuple[str, str],
    with_images: list[Path],
    with_labels: list[Path],
) -> DataError:
    """The error for images and labels in different places."""
    images, labels = (_literal(pattern) for pattern in patterns)
    differ = next((i for i, (one, other) in enumerate(zip(images, labels, strict=False)) if one != other), 0)
    of_images, of_labels = images[: differ + 1], labels[: differ + 1]
    if len(with_images) == len(with_labels) == 1:
        place = with_images[0]
        ref = _command(f"{name}:{place}{at}")
        source, target = with_labels[0].joinpath(*of_labels), place.joinpath(*of_labels)
        return DataError(
            f"images lie in {place.joinpath(*of_images)} and labels in {source}: both must lie in one folder",
            f"run {_command('ln', '-s', source.absolute(), target)} and use {ref}"
            if not os.path.lexists(target)
            else f"put {source} in the place of {target}, and use {ref}",
        )
    moves = [
        (place.joinpath(*literal), root.joinpath(*literal))
        for literal, places in ((of_images, with_images), (of_labels, with_labels))
        for place in places
        if place != root
    ]
    old, new = (shlex.quote(str(path)) for path in moves[0])
    first = f"mkdir -p {new} && mv -n {old}/* {new}/"
    return DataError(
        f"images lie in {_join(with_images, of_images)} and labels in {_join(with_labels, of_labels)}: "
        "all must lie in one folder",
        f"unpack all archives into {root}, or move their files into {root.joinpath(*of_images)} and "
        f"{root.joinpath(*of_labels)}, for example {first}",
    )


def _archive_error(root: Path) -> DataError | None:
    """The error for archives in ``root`` that are not unpacked; None if there are none."""
    archives = [path for path in _children(root) if path.name.lower().endswith(_ARCHIVES)]
    if not archives:
        return None
    unpack = {".zip": ("unzip", "-q", archives[0], "-d", root)}.get(
        archives[0].suffix.lower(), ("tar", "xf", archives[0], "-C", root)
    )
    names = ", ".join(path.name for path in archives[:_LIMIT])
    return DataError(
        f"{root} holds archives ({names}), which are not read",
        f"unpack each into that folder: {_command(*unpack)}",
    )


def archive_error(root: Path) -> DataError | None:
    """The error for a path that is an archive; None for any other path."""
    if root.is_file() and root.name.lower().endswith(_ARCHIVES):
        return DataError(
            f"{root} is an archive, and archives are not read",
            "unpack it, with its images and labels in one folder, and name that folder",
        )
    return None


def _places(root: Path, patterns: tuple[str, str]) -> list[Path]:
    """``root``, the folders above it if it lies inside the dataset, and those below it."""
    above = [
        Path(*root.parts[:-length])
        for literal in map(_literal, patterns)
        for length in range(1, len(literal) + 1)
        if root.parts[-length:] == literal[:length]
    ]
    return list(dict.fromkeys([root, *above, *islice(_below(root, _DEPTH), _MOST)]))


def _partners(
    root: Path, patterns: tuple[str, str], places: list[Path], matches: tuple[list[Path], list[Path]]
) -> list[Path]:
    """Folders beside ``root`` with labels of the images in ``matches``, or with images of the labels.

    Empty if folders of the missing half exist in ``places``; folders with both halves are left out.
    """
    missing = 1 if matches[0] else 0
    suffixes = (IMAGE_SUFFIXES, LABEL_SUFFIXES)
    have, want = patterns[1 - missing], patterns[missing]
    separate = _literal(want)[:1] != _literal(have)[:1]  # a first folder of the missing half alone
    if separate and any(place.joinpath(*_literal(want)[:1]).is_dir() for place in places):
        return []
    stars = keys(matches[1 - missing][0], have, suffixes[1 - missing])
    return [
        place
        for place in _beside(root, patterns)
        if place not in places
        and not any_file(place, have, suffixes[1 - missing])
        and stars & keys(place, want, suffixes[missing])
    ]


def _beside(root: Path, patterns: tuple[str, str]) -> Iterator[Path]:
    """The folders beside ``root``, and their folders that hold a first folder of the patterns."""
    firsts = {pattern.split("/")[0] for pattern in patterns}
    for place in islice(_children(root.parent), _MOST):
        if place != root and place.is_dir():
            yield place
            for inside in islice(_children(place), _LIMIT):
                if inside.is_dir() and any((inside / first).is_dir() for first in firsts):
                    yield inside


def _below(root: Path, depth: int) -> Iterator[Path]:
    folders = [path for path in _children(root) if path.is_dir()]
    yield from folders
    if depth > 1:
        for folder in folders:
            yield from _below(folder, depth - 1)


def _children(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError:
        return
    yield from (folder / name for name in names if not name.startswith("."))


def _literal(pattern: str) -> tuple[str, ...]:
    """The folders of a pattern before its first star."""
    folders = pattern.split("/")[:-1]
    return tuple(folders[: next((i for i, name in enumerate(folders) if "*" in name), len(folders))])


def _join(places: list[Path], literal: tuple[str, ...]) -> str:
    names = ", ".join(str(place.joinpath(*literal)) for place in places[:_LIMIT])
    return names + (f" and {len(places) - _LIMIT} more folders" if len(places) > _LIMIT else "")


def _command(*words: object) -> str:
    return shlex.join(map(str, words))
