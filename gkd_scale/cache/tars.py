"""Images inside WebDataset tars, read at their offsets; each tar is scanned once.

An image is called after its tar and its place in it, ``train-00000.tar/0001.jpg``. If several tars have
one file name, as many of their folders are put before it as tell them apart: ``part0/data.tar/0001.jpg``.
Hard and symbolic links are the images that they point to. Whatever a tar holds is an image, or is counted in
``notes``; a tar that is cut short is refused, because nobody knows what it lacks.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gkd_scale.cache.beside import kinds
from gkd_scale.cache.location import EXTENSIONS, is_url, on_a_line, open_location, packed_as, path_of
from gkd_scale.errors import DataError

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_MOST_LINKS = 40
_MOST_BYTES = 1 << 31
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_LIMIT = 6
_AGAIN = "copy or download it again, or unpack what there is of it ('tar -xf') and give the folder"


class _Place(NamedTuple):
    """The bytes of one image in a tar: ``runs`` of (start in the image, length), one behind the other.

    ``why`` is the reason if there are none.
    """

    tar: str
    offset: int
    size: int
    runs: tuple[tuple[int, int], ...]
    why: str = ""

    def read(self) -> bytes:
        if self.why or self.size > _MOST_BYTES:
            raise OSError(2, self.why or f"{self.size} bytes are no image")
        data = bytearray(self.size)
        with open_location(self.tar) as file:
            file.seek(self.offset)
            for start, length in self.runs:
                piece = file.read(length)
                if len(piece) < length:
                    raise OSError(5, "the tar ends before the image does")
                data[start : start + length] = piece
        return bytes(data)


class Tars:
    """Images in tars. After :meth:`entries`, ``notes`` are lines about what else the tars hold."""

    def __init__(self, tars: Sequence[str]) -> None:
        self._tars = labels(tars)
        self._places: dict[str, _Place] = {}
        self.notes: list[str] = []

    def entries(self) -> list[tuple[str, int]]:
        """(name, bytes) of all images; DataError if a tar cannot be read to its end."""
        scans = {label: _scan(label, tar) for label, tar in self._tars.items()}
        for scan in scans.values():
            self._places |= scan.images
        if not self._places:
            others = kinds(sum((scan.others for scan in scans.values()), Counter()))
            raise DataError(
                f"the tars hold no images ({_first_names(list(scans))})" + (f": {others}" if others else ""),
                f"images are files called {' '.join(EXTENSIONS)}; tars in a tar have to be unpacked",
            )
        self.notes = list(_notes(scans))
        return [(name, place.size) for name, place in self._places.items()]

    def read(self, name: str) -> bytes:
        """The file of one image; OSError if it cannot be read."""
        return self._places[name].read()


def labels(tars: Sequence[str]) -> dict[str, str]:
    """``{label of a tar: its location}``: its file name, after the folders that tell it from others."""
    alike: dict[str, dict[tuple[str, ...], str]] = {}
    for tar in tars:
        parts = _parts(tar)
        alike.setdefault(parts[-1], {}).setdefault(parts, tar)
    by_label = {}
    for paths in alike.values():
        depth = 1
        while len({parts[-depth:] for parts in paths}) < len(paths):
            depth += 1
        for parts, tar in paths.items():
            by_label["/".join(part.strip("/") for part in parts[-depth:])] = tar
    return by_label


def _parts(tar: str) -> tuple[str, ...]:
    return PurePosixPath(path_of(tar) if is_url(tar) else Path(tar).absolute()).parts


# ------------------------------------------------------------------------------------ scanning


@dataclass
class _Scan:
    """The content of one tar: images by name, and counts of other files."""

    images: dict[str, _Place] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    forks: int = 0
    duplicates: list[str] = field(default_factory=list)
    archives: int = 0


def _scan(label: str, tar: str) -> _Scan:
    """Look at every member of a tar; DataError if it cannot be read to its end."""
    try:
        with open_location(tar) as file:
            return _scan_file(label, tar, file)
    except DataError:
        raise
    except FileNotFoundError:
        braces = "; numbers in braces are {00..12}, names {a,b}" if {"{", "}"} & set(tar) else ""
        raise DataError(
            f"the tar {tar} cannot be read: it does not exist", f"check --images{braces}"
        ) from None
    except IsADirectoryError:
        raise DataError(f"the tar {tar} cannot be read: it is a folder", "give the folder alone") from None
    except Exception as error:  # headers of garbage and the backends of fsspec raise nearly anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the tar {tar} cannot be read: {reason}", "check --images") from None


def _scan_file(label: str, tar: str, file: Any) -> _Scan:
    head = file.read(_BLOCK)
    if not head:
        raise DataError(f"the tar {tar} cannot be read: it is empty (0 bytes)", _AGAIN)
    file.seek(0)
    scan = _Scan()
    regular: dict[str, _Place] = {}
    links: dict[str, str] = {}
    absent: list[tuple[str, str]] = []
    for member in _members(tar, file, head, scan):
        path = posixpath.normpath(member.name)
        image = member.name.lower().endswith(EXTENSIONS)
        place = None
        if member.isreg():
            runs: Any = member.sparse or [
                (0, member.size)
            ]  # what is stored: all of it, but for a sparse file
            place = _Place(tar, member.offset_data, member.size, tuple(runs))
        elif member.islnk():
            target = posixpath.normpath(member.linkname)
            place = regular.get(target)
            if place is None and target != path:
                links[path] = target
        elif member.issym():
            links[path] = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.linkname))
            regular.pop(path, None)
        elif member.isdir():
            continue
        if place is not None:
            regular[path] = place
            links.pop(path, None)
        if not image:
            scan.others[posixpath.splitext(member.name)[1].lower() or "without an ending"] += 1
        elif _is_fork(member, place, file):
            scan.forks += 1
        else:
            name = _new_name(f"{label}/{member.name}", scan)
            why = "not a regular file in the tar"
            if place is None and (member.islnk() or member.issym()):
                why = f"a link to {on_a_line(member.linkname)}, which is not in the tar"
                absent.append((name, path))
            scan.images[name] = place or _Place(tar, 0, 0, (), why)
    for name, path in absent:
        scan.images[name] = _follow(path, regular, links) or scan.images[name]
    return scan


def _new_name(name: str, scan: _Scan) -> str:
    """``name``, or if the tar already holds one of that name, ``name#2`` and so on."""
    scan.times[name] += 1
    if scan.times[name] == 1:
        return name
    scan.duplicates.append(f"{name}#{scan.times[name]}")
    return scan.duplicates[-1]


def _is_fork(member: tarfile.TarInfo, place: _Place | None, file: Any) -> bool:
    """Whether a file is a resource fork, which macOS keeps as ``._x.jpg`` beside ``x.jpg``: no image."""
    if place is None or not posixpath.basename(member.name).startswith("._"):
        return False
    position = file.tell()
    file.seek(place.offset)
    magic = file.read(len(_APPLE_DOUBLE))
    file.seek(position)
    return bool(magic == _APPLE_DOUBLE)


def _follow(path: str, regular: dict[str, _Place], links: dict[str, str]) -> _Place | None:
    for _ in range(_MOST_LINKS):
        if path in regular:
            return regular[path]
        if path not in links:
            return None
        path = links[path]
    return None


def _members(tar: str, file: Any, head: bytes, scan: _Scan) -> Iterator[tarfile.TarInfo]:
    """All members, also of tars that lie one behind the other in one file.

    DataError if the file ends in the middle of a tar, or holds something else.
    """
    start, last = 0, None
    while True:
        file.seek(start)
        try:
            archive = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
        except tarfile.ReadError as error:
            kind, hint = packed_as(head)
            reason = f"it is {kind}, not a tar" if kind else str(error)
            raise DataError(f"the tar {tar} cannot be read: {reason}", hint or _AGAIN) from None
        offset = start - 1
        while True:
            try:
                member = archive.next()
            except tarfile.ReadError:
                raise _cut_error(tar, last) from None
            vars(archive)["members"] = []  # a million of them take a gigabyte
            if member is None:
                break
            if member.offset <= offset or member.size < 0:
                raise DataError(f"the tar {tar} is damaged at byte {member.offset}", _AGAIN)
            offset, last = member.offset, member
            yield member
        end = archive.offset
        next_start = _next_tar(tar, file, end, last)
        if next_start is None:
            return
        scan.archives, start = max(1, scan.archives) + 1, next_start


def _next_tar(tar: str, file: Any, end: int, last: tarfile.TarInfo | None) -> int | None:
    """The offset of the next tar in ``file`` after one that ends at ``end``; None if there is none."""
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise _cut_error(tar, last)
    if block.count(0) != _BLOCK:
        raise DataError(f"the tar {tar} is damaged at byte {end}: what follows cannot be found", _AGAIN)
    place = end + _BLOCK
    while block := file.read(_CHUNK):
        zeros = len(block) - len(block.lstrip(b"\0"))
        if zeros < len(block):
            start = place + zeros // _BLOCK * _BLOCK
            file.seek(start)
            try:
                tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                raise DataError(
                    f"the tar {tar} holds something else after its end, at byte {start}", _AGAIN
                ) from None
            return start
        place += len(block)
    return None


def _cut_error(tar: str, last: tarfile.TarInfo | None) -> DataError:
    where = f" in or after its file {on_a_line(last.name)}" if last is not None else ""
    return DataError(f"the tar {tar} is cut short or damaged{where}: nobody knows what it lacks", _AGAIN)


# --------------------------------------------------------------------------------------- notes


def _notes(scans: dict[str, _Scan]) -> Iterator[str]:
    """What tars hold beside images, in a few lines."""
    others = sum((scan.others for scan in scans.values()), Counter[str]())
    if others:
        yield f"files in the tars that are no images by name, left out: {kinds(others)}"
    if forks := sum(scan.forks for scan in scans.values()):
        yield f"resource forks of macOS (._NAME) in the tars, left out: {forks}"
    duplicates = [name for scan in scans.values() for name in scan.duplicates]
    if duplicates:
        yield (
            f"images with the name of another in their tar: {len(duplicates)}; all are kept, "
            f"the first of them as {on_a_line(duplicates[0])}"
        )
    several = [label for label, scan in scans.items() if scan.archives]
    if several:
        yield f"several tars one behind the other in one file, all of them read: {_first_names(several)}"
    empty = [label for label, scan in scans.items() if not scan.images]
    if empty:
        yield f"tars without any image, {len(empty)} of {len(scans)}: {_first_names(empty)}"


def _first_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LIMIT} more" if len(names) > _LIMIT else ""
    return ", ".join(on_a_line(name) for name in names[:_LIMIT]) + more
