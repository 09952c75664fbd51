"""Locations: local paths and URLs, patterns that name several, and what is no location of images.

``url_of`` and ``is_url`` tell URLs (fsspec's) from paths, ``expand`` writes patterns out as a shell does,
``refuse`` says what to do with what cannot be read image by image: compressed tars, zips, ``pipe:`` commands.
"""

from __future__ import annotations

import glob
import math
import os
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

from gkd_scale.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File names that are read as images, whatever their case."""

HINT = (
    "--images takes a folder, a list (.txt, or .parquet with a column 'path'), tars "
    "('a-{00..12}.tar', 'folder/*.tar'), a URL, or ADAPTER:PATH"
)

SCHEME = "cache:"
"""Prefix of the path or URL of a cache whose stored pixels are the images."""

_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/(/?)")
_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+(?:\.\.\d+)?)\}")
_MOST = 1_000_000
_UNPACK = {
    (".tar.gz", ".tgz"): ("gunzip --keep {0}", ".tar"),
    (".tar.bz2", ".tbz2", ".tbz"): ("bunzip2 --keep {0}", ".tar"),
    (".tar.xz", ".txz"): ("xz --decompress --keep {0}", ".tar"),
    (".tar.zst", ".tzst"): ("zstd --decompress {0}", ".tar"),
    (".zip",): ("unzip {0} -d {1}", ""),
    (".7z",): ("7z x {0} -o{1}", ""),
    (".rar",): ("unrar x {0} {1}/", ""),
}
"""Endings of packed files: the command that unpacks {0}, and the ending of what it makes, {1}."""
_PIECE = re.compile(r"^(.*\.(?:tar|tgz|zip)(?:\.gz)?)\.(?:part)?(?:[a-z]{2}|\d+)$", re.IGNORECASE)
_OTHERS = {
    ".csv": "a table",
    ".tsv": "a table",
    ".json": "JSON",
    ".jsonl": "JSON",
    ".lst": "a list of another form",
    ".tfrecord": "TFRecords",
    ".tfrecords": "TFRecords",
    ".lmdb": "LMDB",
    ".mdb": "LMDB",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".npy": "NumPy",
    ".npz": "NumPy",
    ".rec": "RecordIO",
    ".arrow": "Arrow",
    ".beton": "FFCV",
    ".mp4": "a video",
    ".mov": "a video",
    ".avi": "a video",
    ".mkv": "a video",
}
_MAGIC = {
    b"\x1f\x8b": ("gzip", "unpack it: zcat PACKED.tar > PLAIN.tar"),
    b"BZh": ("bzip2", "unpack it: bzcat PACKED.tar > PLAIN.tar"),
    b"\xfd7zXZ": ("xz", "unpack it: xzcat PACKED.tar > PLAIN.tar"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it: zstd -dc PACKED.tar > PLAIN.tar"),
    b"PK\x03\x04": ("a zip file", "unzip it and give the folder"),
    b"7z\xbc\xaf": ("a 7z file", "unpack it and give the folder"),
    b"Rar!": ("a RAR file", "unpack it and give the folder"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    b"<": ("a web page or XML", "download the file again"),
    b"\xff\xd8\xff": ("a JPEG", "give the folder that it is in"),
    b"\x89PNG": ("a PNG", "give the folder that it is in"),
    b"PAR1": ("Parquet", "call it .parquet"),
}


def is_stored(images: str | Path) -> bool:
    """Whether ``images`` is ``cache:CACHE``: the pixels that a cache stores."""
    return str(images).startswith(SCHEME)


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


def path_of(location: str) -> str:
    """A location without what may follow a URL's path (``?signature``)."""
    return re.split(r"[?#]", location, maxsplit=1)[0] if is_url(location) else location


def printable(name: str) -> str:
    """A file's name as text that can be printed, even if it is not valid Unicode."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def on_a_line(name: str) -> str:
    """As :func:`printable`, with line breaks and other control characters escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in printable(name)
    )


def is_tar(location: str) -> bool:
    """Whether a location is called .tar."""
    return path_of(location).lower().endswith(".tar")


# ------------------------------------------------------------------------------------- patterns


def expand(pattern: str) -> list[str]:
    """Braces as bash writes them out: ``{00..12}``, ``{2..0}``, ``{0..10..2}``, ``{a,b}``; each name once."""
    if _count(pattern) > _MOST:
        raise DataError(f"{pattern} names more than {_MOST} files", "check the numbers in braces")
    return list(dict.fromkeys(_expand(pattern)))


def _expand(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in _choices(match[1]) for name in _expand(f"{head}{choice}{tail}")]


def _choices(inside: str) -> list[str]:
    """What one pair of braces stands for."""
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    first, last, step = int(match[1]), int(match[2]), max(1, int(match[3] or 1))
    padded = any(len(text) > 1 and text.startswith("0") for text in match.groups()[:2])
    width = max(len(match[1]), len(match[2])) if padded else 1
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def _count(pattern: str) -> int:
    """The number of names that a pattern stands for, or more."""
    sizes = [
        abs(int(match[2]) - int(match[1])) // max(1, int(match[3] or 1)) + 1
        if (match := _RANGE.fullmatch(inside))
        else inside.count(",") + 1
        for inside in _BRACES.findall(pattern)
    ]
    return math.prod(sizes)


def locations(images: str) -> list[str]:
    """The places that ``images`` names: its parts between ``::``, with braces and ``*`` written out.

    DataError if a pattern matches nothing.
    """
    if os.path.exists(images):  # noqa: PTH110  # False, not an error, for a name that is too long
        return [images]
    names = [name for part in images.split("::") if part for name in expand(url_of(part))]
    return list(dict.fromkeys(path for name in names for path in _matches(name))) or [images]


def _matches(name: str) -> list[str]:
    """The files that a name with stars stands for; the name itself without any."""
    if not glob.has_magic(path_of(name)) or os.path.exists(name) or not is_tar(name):  # noqa: PTH110
        return [name]
    if is_url(name):
        fs, path = file_system(name)
        files = sorted(fs.unstrip_protocol(file) for file in fs.glob(path))
    else:
        files = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # a Path has no relative patterns
    if not files:
        raise DataError(f"no file matches {name}", "check --images")
    return [str(file) for file in files]


# ----------------------------------------------------------------------------------------- refusals


def refuse_output(images: str) -> None:
    """DataError if ``images`` is the output of a command (webdataset's ``pipe:``), or standard input."""
    if images == "-" or any(part.startswith("pipe:") for part in images.split("::")):
        raise DataError(
            f"--images {images} is the output of a command, and images are read at their places, many times",
            "save what the command writes as a .tar and give that, or give its URL",
        )


def refuse(images: str, place: str) -> None:
    """DataError if ``place``, one of the places of ``images``, is of a kind that holds no readable images."""
    lower = path_of(place).lower()
    for endings, (command, suffix) in _UNPACK.items():
        for ending in endings:
            if lower.endswith(ending):
                raise DataError(
                    f"--images {images} is packed: an image in it cannot be read without those before it",
                    _unpack_hint(images, ending, command, suffix),
                )
    if piece := _PIECE.match(path_of(place)):
        whole = _quote(piece[1])
        raise DataError(
            f"--images {images} is a piece of a split archive", f"join the pieces: cat {whole}.* > {whole}"
        )
    for ending, what in _OTHERS.items():
        if lower.endswith(ending):
            raise DataError(f"--images {images} is {what} ({ending}), which is not read here", HINT)
    if lower.endswith(EXTENSIONS) and (is_url(place) or Path(place).is_file()):
        raise DataError(f"--images {images} is one image", "give its folder, or a list of images (.txt)")


def _unpack_hint(images: str, ending: str, command: str, suffix: str) -> str:
    if is_url(images):
        return f"download and unpack it, then give the {'.tar' if suffix else 'folder'}"
    target = f"{images[: -len(ending)]}{suffix}"
    return f"{command.format(_quote(images), _quote(target))}, then --images {_quote(target)}"


def _quote(text: str) -> str:
    """A word for the shell, in which braces still work."""
    return text if re.fullmatch(r"[\w./{},:@%+=-]+", text) else shlex.quote(text)


def packed_as(head: bytes) -> tuple[str, str]:
    """The kind of a file that begins with ``head`` and the next step, if it is no tar; else ("", "")."""
    head = head.lstrip(b"\xef\xbb\xbf \r\n")
    return next((what for magic, what in _MAGIC.items() if head.startswith(magic)), ("", ""))


# ------------------------------------------------------------------------------------- fsspec


@lru_cache(maxsize=16)
def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it; DataError if fsspec lacks the backend."""
    import fsspec  # type: ignore[import-untyped]

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"{url} cannot be opened: {error}", "install the fsspec backend it names") from None
    return fs, str(path)


def open_location(location: str) -> Any:
    """A file for reading bytes, local or behind fsspec."""
    if is_url(location):
        fs, path = file_system(location)
        return fs.open(path, "rb")
    return open(os.fspath(location), "rb")
