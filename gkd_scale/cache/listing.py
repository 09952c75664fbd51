"""The images of a folder or a bucket, listed a unit at a time by several threads.

A unit is a folder with what lies directly in it, or a part of a bucket. It is known by its name and by a
stamp that changes when it does, so that a listing that was killed goes on with the units that it lacks.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from gkd_scale.cache.beside import is_hidden, is_system_file, kinds
from gkd_scale.cache.location import EXTENSIONS, HINT, is_tar
from gkd_scale.errors import DataError
from gkd_scale.prefetch import prefetch
from gkd_scale.text import spelling

_TOGETHER = 1 << 16
"""Images that are taken from a source at a time."""

THREADS = 8
"""Folders that are listed at a time: a network file system answers several threads as fast as one."""


@dataclass(frozen=True)
class Unit:
    """One folder, or a part of a bucket. All paths are below the root, with '/'."""

    name: str
    stamp: str
    folders: list[str] = field(default_factory=list)
    """The units below it."""
    links: list[str] = field(default_factory=list)
    """Links to folders."""
    tars: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    """Counts of other files by their ending."""


Images = Sequence[tuple[str, int]]
"""(path, bytes) of images."""


@runtime_checkable
class Listing(Protocol):
    """A place that is listed a unit at a time."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines about what is left out. Complete after the last unit."""
        ...

    def units(self, earlier: Mapping[str, Unit]) -> Iterator[tuple[Unit | None, Images]]:
        """All units with their images; those in ``earlier`` without, as they were listed before."""
        ...

    def stamp(self, unit: str) -> str:
        """A text that changes when a unit does; '' if nobody can know. OSError if there is no such unit."""
        ...

    def empty(self) -> DataError:
        """The error of a place without images."""
        ...


class Lister(Protocol):
    """A place that lists all its images at once."""

    def entries(self) -> Iterable[tuple[str, int]]:
        """(path, bytes) of all images, in no particular order."""
        ...


def listing_of(images: str | Path, skip: Path | None, source: Lister | Listing | None) -> Listing:
    """The listing of a folder, or of the ``source`` that reads ``images``."""
    if source is None:
        return FolderListing(images, skip)
    return source if isinstance(source, Listing) else WholeListing(images, source)


class WholeListing:
    """The listing of a :class:`Lister`: all images, without units."""

    def __init__(self, images: str | Path, lister: Lister) -> None:
        self._images, self._lister = images, lister

    @property
    def notes(self) -> Sequence[str]:
        return getattr(self._lister, "notes", ())

    def units(self, earlier: Mapping[str, Unit]) -> Iterator[tuple[None, Images]]:  # noqa: ARG002
        images = self._lister.entries()
        if isinstance(images, list):  # a label may lie far from its image
            yield None, images
            return
        rest = iter(images)
        while chunk := list(islice(rest, _TOGETHER)):
            yield None, chunk

    def stamp(self, unit: str) -> str:
        """As :meth:`Listing.stamp`: there is no unit."""
        raise FileNotFoundError(unit)

    def empty(self) -> DataError:
        return DataError(f"{self._images} holds no images", f"check --images: {HINT}")


class FolderListing:
    """The images in a folder and below it, but for hidden files (``.name``) and those of operating systems.

    Each real folder is read once, so links cannot loop. Real folders come first: one that is also reached
    through a link keeps its real path. ``skip`` is a folder that is left out. DataError for a folder that is
    missing or cannot be listed.
    """

    def __init__(self, images: str | Path, skip: Path | None = None) -> None:
        self._root = Path(images)
        if not self._root.is_dir():
            raise _no_folder(self._root)
        self._seen = {_identity(skip)} - {_identity(self._root)} if skip and skip.is_dir() else set()
        self._tars: list[str] = []
        self._others: Counter[str] = Counter()

    @property
    def notes(self) -> list[str]:
        notes = []
        if self._tars:
            hint = f"--images '{self._pattern()}' reads them"
            notes.append(f"tars in the folder, left out: {len(self._tars)}; {hint}")
        if self._others:
            notes.append(f"files in the folder that are no images by name, left out: {kinds(self._others)}")
        return notes

    def units(self, earlier: Mapping[str, Unit]) -> Iterator[tuple[Unit, Images]]:
        links = [""]
        while links:
            level = [links.pop(0)]
            while level := [folder for folder in level if self._is_new(folder)]:
                below: list[str] = []
                for unit, images in prefetch(partial(self._list, earlier), level, THREADS, 4 * THREADS):
                    below += unit.folders
                    links += unit.links
                    self._tars += unit.tars
                    self._others.update(unit.others)
                    yield unit, images
                level = below
            links.sort()

    def stamp(self, unit: str) -> str:
        """As :meth:`Listing.stamp`: the time of the folder's last change."""
        return str((self._root / unit).stat().st_mtime_ns)

    def empty(self) -> DataError:
        tars = [f"tars: {len(self._tars)}"] if self._tars else []
        what = ", ".join([*tars, kinds(self._others)] if self._others else tars)
        hint = f"it is searched recursively for {' '.join(EXTENSIONS)}; check --images"
        if self._tars:
            hint = f"to read images in tars, give --images '{self._pattern()}'"
        elif self._others.keys() & {".zip", ".gz", ".tgz", ".7z", ".rar"}:
            hint = f"unpack the archives; {hint}"
        return DataError(f"the folder {self._root} holds no images" + (f", but {what}" if what else ""), hint)

    def _is_new(self, folder: str) -> bool:
        identity = _identity(self._root / folder)
        if identity in self._seen:
            return False
        self._seen.add(identity)
        return True

    def _list(self, earlier: Mapping[str, Unit], folder: str) -> tuple[Unit, Images]:
        if folder in earlier:
            return earlier[folder], []
        unit = Unit(folder, self.stamp(folder))
        images: list[tuple[str, int]] = []
        for entry in _entries(self._root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                continue
            if _is_folder(entry):
                (unit.links if entry.is_symlink() else unit.folders).append(path)
                continue
            ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  # a million of them
            if ending in EXTENSIONS:
                images.append((path, _size(entry)))
            elif is_tar(entry.name):
                unit.tars.append(path)
            elif not is_system_file(entry.name):
                ending = ending or "without an ending"
                unit.others[ending] = unit.others.get(ending, 0) + 1
        return unit, images

    def _pattern(self) -> str:
        """A pattern that names all tars."""
        flat = all("/" not in tar for tar in self._tars)
        return f"{self._root}/{'' if flat else '**/'}*.tar"


def _no_folder(images: Path) -> DataError:
    what = "is not a folder" if images.exists() else "does not exist"
    if (twin := spelling(images)) != images:
        what = f"does not exist in this Unicode form, but there is {str(twin)!a}"
    return DataError(f"the image folder {images} {what}", f"check --images: {HINT}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be listed: {error.strerror}", "check permissions"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _size(entry: os.DirEntry[str]) -> int:
    """Bytes of a regular file; 0 for anything else, which the build then records as unreadable."""
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


# ------------------------------------------------------------------------------------- buckets

_ENOUGH = 2 * THREADS
"""Prefixes that keep the threads busy: no deeper level is asked for."""


class PrefixListing:
    """The objects below a prefix of a bucket, listed in parts: by its first level with enough folders.

    ``listing(prefix, whole)`` is (path below the root, bytes or None for a folder) of what lies in a prefix:
    directly, or ``whole``.
    """

    def __init__(self, listing: Callable[[str, bool], Sequence[tuple[str, int | None]]]) -> None:
        self._listing = listing
        self.tars = 0

    def units(self, earlier: Mapping[str, Unit]) -> Iterator[tuple[Unit, Images]]:
        level, whole = [""], False
        while level:
            whole = whole or len(level) >= _ENOUGH
            below: list[str] = []
            for unit, images in prefetch(partial(self._list, earlier, whole), level, THREADS, 4 * THREADS):
                below += unit.folders
                self.tars += len(unit.tars)
                yield unit, images
            level = below

    def stamp(self, unit: str) -> str:  # noqa: ARG002
        """As :meth:`Listing.stamp`: no bucket says when a prefix changed."""
        return ""

    def _list(self, earlier: Mapping[str, Unit], whole: bool, prefix: str) -> tuple[Unit, Images]:
        if prefix in earlier:
            return earlier[prefix], []
        unit = Unit(prefix, "")
        images: list[tuple[str, int]] = []
        for path, size in self._listing(prefix, whole):
            if any(map(is_hidden, path.split("/"))):
                continue
            if size is None:
                unit.folders.append(path)
            elif path.lower().endswith(EXTENSIONS):
                images.append((path, size))
            elif is_tar(path):
                unit.tars.append(path)
        return unit, images
