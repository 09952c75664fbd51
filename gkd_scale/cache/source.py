"""Where images come from: a folder, a list of paths, WebDataset tars; on disk or behind fsspec.

A source lists its images, each with a name that never changes and its size, and reads one by name. The
name decides the sample's ``sid``, so the same images in another place make the same cache.

===============================  ================================================================
``--images``                     names
===============================  ================================================================
``photos``                       paths below the folder
``photos.txt``                   one path a line, relative to the file or absolute, as written
``photos.parquet``               the same in a column ``path``
``train-{00000..00012}.tar``     ``train-00000.tar/0001.jpg``: images in WebDataset tars (also ``{2..0}``,
                                 ``{a,b}``, ``folder/*.tar``, ``a.tar::b.tar``); see :mod:`.tars`
``s3://bucket/photos``           paths below the prefix (``gs://``, ``hf://``, ``file://`` ... alike)
``camvid:PATH``                  ``000017-NAME``: samples of a labelled dataset, in its order
``cache:CACHE``                  those of that cache; see :mod:`.stored`
===============================  ================================================================
"""

from __future__ import annotations

import io
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from PIL import Image

from gkd_scale.cache.listing import PrefixListing
from gkd_scale.cache.location import (
    EXTENSIONS,
    HINT,
    file_system,
    is_stored,
    is_tar,
    is_url,
    locations,
    refuse,
    refuse_output,
    url_of,
)
from gkd_scale.cache.tars import Tars
from gkd_scale.errors import DataError
from gkd_scale.prefetch import prefetch
from gkd_scale.text import read_lines
from gkd_scale.types import SegDataset, SegSample

_THREADS = 8


class Source(Protocol):
    """Images by name."""

    def entries(self) -> list[tuple[str, int]]:
        """(name, bytes) of all images, in no particular order."""
        ...

    def read(self, name: str) -> bytes:
        """The file of one image; OSError if it cannot be read."""
        ...


class StoredView(NamedTuple):
    """A view that a cache holds: its JPEG bytes, and the JSON beside them."""

    jpeg: memoryview
    facts: dict[str, Any]


class ViewSource(Protocol):
    """Views that are made already."""

    @property
    def origin(self) -> dict[str, str]:
        """The cache that stores them: ``manifest``, the SHA-256 of its manifest, and ``path``."""
        ...

    def view(self, sid: str, view: int) -> StoredView | str:
        """A view of one image; or why that image could not be read."""
        ...


def open_source(images: str | Path) -> Source | None:
    """The source that ``images`` names; None for a plain folder. DataError if it cannot be used."""
    text = str(images)
    if os.path.isdir(text):  # noqa: PTH112  # False, not an error, for a name that is too long
        return None
    if is_stored(text):
        raise DataError(f"--images {text}: only cache-teacher, plan and repair read a cache's pixels", HINT)
    refuse_output(text)
    places = locations(text)
    others = [place for place in places if not is_tar(place)]
    if not others:
        return Tars(places)
    for place in places:
        refuse(text, place)
    if len(places) > 1:
        raise DataError(f"--images {text} names {len(places)} places, and {others[0]} is no tar", HINT)
    if text.lower().endswith((".txt", ".parquet")):
        return PathList(Path(text))
    return UrlSource(url_of(text)) if is_url(text) else None


class PathList:
    """Images named by a text file or by the column ``path`` of a Parquet file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def entries(self) -> list[tuple[str, int]]:
        names = list({os.path.normpath(name): name for name in reversed(self._names())}.values())[::-1]
        if not names:
            raise DataError(f"{self._file} names no images", "write one path a line")
        if not any(os.path.lexists(self._path(name)) for name in names):
            near = next(filter(os.path.lexists, map(self._path, _spellings(names[0]))), None)
            raise DataError(
                f"{self._file} names {len(names)} files, none of which exists; the first is {names[0]!r}",
                (f"there is {near}; " if near else "")
                + f"write one path a line and nothing else, absolute or below {self._file.parent}, with '/'",
            )
        return [(name, self._size(name)) for name in names]

    def read(self, name: str) -> bytes:
        path = self._path(name)
        status = _status(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            raise OSError(2, "not a regular file" if status else "no such file")
        return path.read_bytes()

    def _names(self) -> list[str]:
        try:
            if self._file.suffix.lower() == ".parquet":
                return _column(self._file)
            return read_lines(self._file, names=True)
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"the list {self._file} does not exist", "check --images") from None
        except Exception as error:
            raise DataError(
                f"the list {self._file} cannot be read: {' '.join(str(error).split())[:160]}",
                "give one path a line, or a Parquet file with a column 'path'",
            ) from None

    def _path(self, name: str) -> Path:
        """The path of a listed name, in the Unicode form that the file system has."""
        path = self._file.parent / name
        if name.isascii() or _status(path):
            return path
        others = (self._file.parent / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
        return next((other for other in others if _status(other)), path)

    def _size(self, name: str) -> int:
        status = _status(self._path(name))
        return status.st_size if status and stat.S_ISREG(status.st_mode) else 0


def _spellings(line: str) -> Iterator[str]:
    """What a line of a list may mean: quotes, a URL, backslashes, columns, a name without its ending."""
    bare = line.strip("\"'")
    plain = unquote(bare.removeprefix("file://")).replace("\\", "/")
    yield plain
    yield from filter(None, re.split(r"[\s,;]+", plain))
    yield from (f"{plain}{ending}" for ending in EXTENSIONS)
    yield PurePosixPath(plain).name


def _status(path: Path) -> os.stat_result | None:
    """The status of a file; None if there is no such file, or the name is impossible (5000 letters)."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _column(file: Path) -> list[str]:
    """The column ``path`` of a Parquet file; the DataError names the columns that the file has."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    if "path" not in schema.names:
        raise DataError(
            f"the list {file} has no column 'path', but {', '.join(map(repr, schema.names[:8])) or 'none'}",
            "name the column of the images' files 'path'; images that lie in the table itself have to be "
            "written as files first",
        )
    names = pq.read_table(file, columns=["path"])["path"].to_pylist()
    if not all(isinstance(name, str) for name in names):
        row = next(row for row, name in enumerate(names) if not isinstance(name, str))
        raise DataError(
            f"the list {file} holds {names[row]!r:.40} as path in row {row}", "give paths as text"
        )
    return names


class LabelledSource:
    """The samples of a labelled dataset, which the command line opens.

    They are decoded images, and their labels go into the shards with them.
    """

    def __init__(self, dataset: SegDataset) -> None:
        self._dataset = dataset
        self._places: dict[str, int] = {}

    @property
    def labels(self) -> dict[str, Any]:
        """The meaning of the label values: names and colours of the classes, and the absent classes."""
        dataset = self._dataset
        meaning = {"classes": list(dataset.classes), "palette": [list(colour) for colour in dataset.palette]}
        return {**meaning, "absent": list(dataset.absent)} if dataset.absent else meaning

    def entries(self) -> list[tuple[str, int]]:
        """Names and bytes of the images: of the dataset's files if it lists them, else by reading all."""
        files = getattr(self._dataset, "pairs", None)
        if files is not None:
            sizes = [(image.stem, image.stat().st_size) for image, _ in files]
        else:
            places = range(len(self._dataset))
            names = prefetch(lambda place: self._dataset[place].name, places, _THREADS, 4 * _THREADS)
            sizes = [(name, 0) for name in names]
        entries = [(f"{place:06d}-{name}", size) for place, (name, size) in enumerate(sizes)]
        self._places = {name: place for place, (name, _) in enumerate(entries)}
        return entries

    def sample(self, name: str) -> SegSample:
        """Image and label of one name; OSError if they cannot be read."""
        try:
            return self._dataset[self._places[name]]
        except DataError as error:
            raise OSError(5, error.message) from None

    def read(self, name: str) -> bytes:
        """The image as a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self.sample(name).image).save(buffer, "PNG")
        return buffer.getvalue()


class UrlSource:
    """Images below a URL prefix, through fsspec; a :class:`~gkd_scale.cache.listing.Listing` too."""

    notes = ()

    def __init__(self, url: str) -> None:
        self._url = url
        self._fs, self._root = file_system(url)
        self._root = self._root.rstrip("/")
        self._prefixes = PrefixListing(self._objects)
        self.units, self.stamp = self._prefixes.units, self._prefixes.stamp

    def entries(self) -> list[tuple[str, int]]:
        return [image for _, images in self.units({}) for image in images]

    def empty(self) -> DataError:
        """The error of a prefix without images."""
        hint = f"; its tars are read as '{self._url.rstrip('/')}/**/*.tar'" if self._prefixes.tars else ""
        return DataError(f"{self._url} holds no images", f"check --images{hint}")

    def _objects(self, prefix: str, whole: bool) -> list[tuple[str, int | None]]:
        """The ``listing`` of :class:`PrefixListing`."""
        place = f"{self._root}/{prefix}".rstrip("/")
        try:
            items = self._fs.find(place, detail=True).values() if whole else self._fs.ls(place, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise DataError(
                f"{self._url} cannot be listed: {error}", "check --images and your keys"
            ) from None
        return [
            (item["name"].rstrip("/")[len(self._root) + 1 :], _bytes_of(item))
            for item in items
            if item["name"].rstrip("/") != place
        ]

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except OSError:
            raise
        except Exception as error:  # each backend has errors of its own
            raise OSError(5, f"{type(error).__name__}: {error}") from None


def _bytes_of(item: Mapping[str, Any]) -> int | None:
    """Bytes of an object of fsspec; None for a folder."""
    return None if item["type"] == "directory" else int(item.get("size") or 0)
