"""Where images come from: a folder, a list of paths, WebDataset tars; on disk or behind fsspec.

A source lists its images, each with a name that never changes and its size, and reads one by name. The
name decides the sample's ``sid``, so the same images in another place make the same cache.

===============================  ================================================================
``--images``                     names
===============================  ================================================================
``photos``                       paths below the folder
``photos.txt``                   one path a line, relative to the file or absolute, as written
``photos.parquet``               the same in a column ``path``
``train-{00000..00012}.tar``     ``train-00000.tar/0001.jpg``: images in WebDataset tars
``s3://bucket/photos``           paths below the prefix (``gs://``, ``hf://``, ``file://`` ... alike)
``camvid:PATH``                  ``000017-NAME``: samples of a labelled dataset, in its order
===============================  ================================================================
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import unicodedata
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image

from gkd_scale.errors import DataError
from gkd_scale.prefetch import prefetch
from gkd_scale.text import read_lines
from gkd_scale.types import SegDataset, SegSample

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File names that are read as images, whatever their case."""

_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/(/?)")
_THREADS = 8
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Source(Protocol):
    """Images by name."""

    def entries(self) -> list[tuple[str, int]]:
        """(name, bytes) of all images, in no particular order."""
        ...

    def read(self, name: str) -> bytes:
        """The file of one image; OSError where it cannot be read."""
        ...


def is_url(location: str | Path) -> bool:
    """Whether a location is behind fsspec; a Path that swallowed a slash of '//' counts."""
    return bool(_URL.match(str(location)))


def url_of(location: str | Path) -> str:
    """The location with the two slashes after its scheme."""
    text = str(location)
    match = _URL.match(text)
    if match is None or match[2]:
        return text
    slashes = ":///" if match[1] == "file" else "://"
    return f"{match[1]}{slashes}{text[match.end() :]}"


def open_source(images: str | Path) -> Source | None:
    """The source that ``images`` names; None for a plain folder. DataError where it cannot be used."""
    text = str(images)
    if Path(text).is_dir():
        return None
    if text.endswith(".tar"):
        return Tars(expand(url_of(text) if is_url(text) else text))
    if text.endswith((".txt", ".parquet")):
        return PathList(Path(text))
    return Remote(url_of(text)) if is_url(text) else None


def expand(pattern: str) -> list[str]:
    """``a-{00..12}.tar`` to its thirteen names; any number of braces."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    width = len(match[1])
    names = [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for number in names for name in expand(f"{head}{number}{tail}")]


class PathList:
    """Images named by a text file or by the column ``path`` of a Parquet file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def entries(self) -> list[tuple[str, int]]:
        names = list(dict.fromkeys(self._names()))
        if not names:
            raise DataError(f"{self._file} names no images", "write one path a line")
        if not any(os.path.lexists(self._path(name)) for name in names):
            raise DataError(
                f"{self._file} names {len(names)} files, none of which exists; the first is {names[0]!r}",
                f"write one path a line and nothing else, absolute or below {self._file.parent}, with '/'",
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
            if self._file.suffix == ".parquet":
                import pyarrow.parquet as pq

                return [str(name) for name in pq.read_table(self._file, columns=["path"])["path"].to_pylist()]
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
        """The file that is called so, in whichever Unicode form its name is written there."""
        path = self._file.parent / name
        if name.isascii() or _status(path):
            return path
        others = (self._file.parent / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
        return next((other for other in others if _status(other)), path)

    def _size(self, name: str) -> int:
        status = _status(self._path(name))
        return status.st_size if status and stat.S_ISREG(status.st_mode) else 0


def _status(path: Path) -> os.stat_result | None:
    """What is there; None where nothing is, or for a name that is none, such as one of 5000 letters."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


class Tars:
    """Images inside tars, read at their offsets; each tar is scanned once."""

    def __init__(self, tars: list[str]) -> None:
        self._tars = {PurePosixPath(tar).name: tar for tar in tars}
        self._places: dict[str, tuple[str, int, int]] = {}

    def entries(self) -> list[tuple[str, int]]:
        for name, tar in self._tars.items():
            self._places |= self._scan(name, tar)
        if not self._places:
            raise DataError(f"the tars hold no images ({', '.join(self._tars)})", "check --images")
        return [(name, size) for name, (_, _, size) in self._places.items()]

    def read(self, name: str) -> bytes:
        tar, offset, size = self._places[name]
        with _open(tar) as file:
            file.seek(offset)
            return bytes(file.read(size))

    def _scan(self, name: str, tar: str) -> dict[str, tuple[str, int, int]]:
        """``{name: (tar, offset, bytes)}`` of the images in one tar."""
        try:
            with _open(tar) as file, tarfile.open(fileobj=file, mode="r:") as members:
                return {
                    f"{name}/{member.name}": (tar, member.offset_data, member.size)
                    for member in members
                    if member.isfile() and member.name.lower().endswith(EXTENSIONS)
                }
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"the tar {tar} cannot be read: {error}", "check --images") from None


class Labelled:
    """The samples of a labelled dataset; whoever opens it (the command line) hands it over.

    They come decoded, and their labels go into the shards with them.
    """

    def __init__(self, dataset: SegDataset) -> None:
        self._dataset = dataset
        self._places: dict[str, int] = {}

    @property
    def labels(self) -> dict[str, Any]:
        """What the label values mean: names and colours of the classes, and which of them occur nowhere."""
        dataset = self._dataset
        named = {"classes": list(dataset.classes), "palette": [list(colour) for colour in dataset.palette]}
        return {**named, "absent": list(dataset.absent)} if dataset.absent else named

    def entries(self) -> list[tuple[str, int]]:
        """Names and bytes of the images: of the dataset's files where it tells them, else by reading all."""
        files = getattr(self._dataset, "pairs", None)
        if files is not None:
            found = [(image.stem, image.stat().st_size) for image, _ in files]
        else:
            places = range(len(self._dataset))
            read = prefetch(lambda place: self._dataset[place].name, places, _THREADS, 4 * _THREADS)
            found = [(name, 0) for name in read]
        named = [(f"{place:06d}-{name}", size) for place, (name, size) in enumerate(found)]
        self._places = {name: place for place, (name, _) in enumerate(named)}
        return named

    def sample(self, name: str) -> SegSample:
        """Image and label of one name; OSError where they cannot be read."""
        try:
            return self._dataset[self._places[name]]
        except DataError as error:
            raise OSError(5, error.message) from None

    def read(self, name: str) -> bytes:
        """The image as a PNG."""
        buffer = io.BytesIO()
        Image.fromarray(self.sample(name).image).save(buffer, "PNG")
        return buffer.getvalue()


class Remote:
    """Images below a URL prefix, through fsspec."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._fs, self._root = file_system(url)

    def entries(self) -> list[tuple[str, int]]:
        try:
            found = self._fs.find(self._root, detail=True)
        except Exception as error:
            raise DataError(
                f"{self._url} cannot be listed: {error}", "check --images and your keys"
            ) from None
        start = len(self._root.rstrip("/")) + 1
        images = [
            (path[start:], int(info.get("size") or 0))
            for path, info in found.items()
            if path.lower().endswith(EXTENSIONS) and "/." not in f"/{path[start:]}"
        ]
        if not images:
            raise DataError(f"{self._url} holds no images", "check --images")
        return images

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(f"{self._root.rstrip('/')}/{name}"))
        except OSError:
            raise
        except Exception as error:  # each backend has errors of its own
            raise OSError(5, f"{type(error).__name__}: {error}") from None


@lru_cache(maxsize=16)
def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it; DataError where fsspec lacks the backend."""
    import fsspec  # type: ignore[import-untyped]

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be opened: {error}", "install the fsspec backend it names") from None
    return fs, str(path)


def _open(location: str) -> Any:
    if is_url(location):
        fs, path = file_system(location)
        return fs.open(path, "rb")
    return open(os.fspath(location), "rb")
