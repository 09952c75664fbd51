"""The plan: the images of a cache, the name and the shard of each.

The plan is made before the teacher sees its first pixel and never changes: shards are cut, a fixed number
of images each, from a seeded permutation of the sorted list, readable or not. A resumed build, another
worker or another node therefore agree about every shard without talking to each other. Training mixes a few
shards at a time: without the permutation, a folder with a subfolder a class would give batches of few
classes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gkd_scale.cache.location import ACCEPTED, EXTENSIONS, is_tar, printable
from gkd_scale.cache.source import Source, ViewSource, open_source
from gkd_scale.cache.spec import FORMAT, SORTED
from gkd_scale.cache.tars import Tars
from gkd_scale.errors import DataError
from gkd_scale.files import write_bytes
from gkd_scale.prefetch import prefetch
from gkd_scale.randomness import generator
from gkd_scale.text import spelled

PLAN = "plan.parquet"

_THREADS, _TOGETHER = 8, 1000
"""Threads that ask for the sizes of files, and how many files each asks for at a time."""

_METADATA = {"gkd-scale": json.dumps({"format": FORMAT})}


@dataclass(frozen=True)
class Entry:
    """One source image: ``path`` relative to the folder with '/', ``bytes`` on disk (0 if not a file)."""

    sid: str
    path: str
    bytes: int

    @property
    def name(self) -> str:
        """``path`` as printable text, even if the file name is not valid Unicode."""
        return printable(self.path)


@dataclass(frozen=True)
class ImagePlan:
    """The images, sorted by path, and the shards of ``samples_per_shard`` that they go to."""

    entries: tuple[Entry, ...]
    samples_per_shard: int
    source: Source | None = None
    """What reads the images; None for a folder."""
    notes: tuple[str, ...] = ()
    """Lines about files beside the images that are left out."""
    seed: int | None = None
    """Seed of the permutation that the shards are cut from; None: from the sorted list (format 1)."""
    stored: ViewSource | None = None
    """What has their views already; None if they are made of the images."""

    @property
    def format(self) -> int:
        """Version of the cache's files."""
        return SORTED if self.seed is None else FORMAT

    @cached_property
    def order(self) -> npt.NDArray[np.uint32]:
        """Indices into ``entries`` in the order of the shards; a function of seed and number of images.

        4 bytes an image.
        """
        order = np.arange(len(self.entries), dtype=np.uint32)
        if self.seed is not None:
            generator("plan", self.seed, len(order)).shuffle(order)
        return order

    @property
    def shards(self) -> int:
        return -(-len(self.entries) // self.samples_per_shard)

    def shard(self, shard: int) -> tuple[Entry, ...]:
        """The images of one shard."""
        start = shard * self.samples_per_shard
        return tuple(self.entries[index] for index in self.order[start : start + self.samples_per_shard])

    def hash(self) -> str:
        """SHA-256 over the names and sizes of the images, sorted by path."""
        state = hashlib.sha256()
        for entry in self.entries:
            state.update(f"{entry.sid} {entry.bytes}\n".encode())
        return state.hexdigest()


def make_plan(
    images: str | Path,
    samples_per_shard: int,
    skip: Path | None = None,
    source: Source | None = None,
    seed: int | None = None,
) -> ImagePlan:
    """The plan of a folder or another source; ``skip`` is a folder inside it that is left out (the cache).

    ``source`` reads ``images`` if the caller has opened them. ``seed`` is that of :class:`ImagePlan`.

    Raises DataError for a folder that is missing, cannot be listed or holds no image.
    """
    source = source or open_source(images)
    if source is not None:
        entries = [Entry(sid_of(name), name, size) for name, size in sorted(source.entries())]
        notes = source.notes if isinstance(source, Tars) else ()
        return _planned(entries, samples_per_shard, source, notes, seed)
    images = Path(images)
    if not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        if (twin := spelled(images)) != images:
            what = f"does not exist in this Unicode form, but there is {str(twin)!a}"
        raise DataError(f"the image folder {images} {what}", f"check --images: {ACCEPTED}")
    tars: list[str] = []
    paths = sorted(_walk(images, skip, tars))
    if not paths:
        raise DataError(
            f"the folder {images} holds no images" + (f", but tars: {len(tars)}" if tars else ""),
            f"to read images in tars, give --images '{_pattern(images, tars)}'"
            if tars
            else f"it is searched recursively for {' '.join(EXTENSIONS)}; check --images",
        )
    notes = [f"tars in the folder, left out: {len(tars)}; --images '{_pattern(images, tars)}' reads them"]
    entries = [
        Entry(sid_of(path), path, size) for path, size in zip(paths, _sizes(images, paths), strict=True)
    ]
    return _planned(entries, samples_per_shard, None, notes if tars else (), seed)


def _planned(
    entries: list[Entry],
    samples_per_shard: int,
    source: Source | None,
    notes: Sequence[str],
    seed: int | None,
) -> ImagePlan:
    _refuse_collisions(entries)
    return ImagePlan(tuple(entries), samples_per_shard, source, tuple(notes), seed)


def _pattern(images: Path, tars: Sequence[str]) -> str:
    """A pattern that names all ``tars``, paths below ``images``."""
    flat = all("/" not in tar for tar in tars)
    return f"{images}/{'' if flat else '**/'}*.tar"


def sid_of(path: str) -> str:
    """The name of a sample, 16 lowercase hex digits: the 64-bit BLAKE2b of its relative path."""
    return hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()


def write_plan(plan: ImagePlan, path: Path) -> None:
    """``plan.parquet``: a row an image with sid, path, bytes, shard. A whole file stays as it is."""
    entries = [plan.entries[index] for index in plan.order]
    table = pa.table(
        {
            "sid": pa.array([entry.sid for entry in entries], pa.string()),
            "path": pa.array([entry.name for entry in entries], pa.string()),
            "bytes": pa.array([entry.bytes for entry in entries], pa.int64()),
            "shard": pa.array([i // plan.samples_per_shard for i in range(len(entries))], pa.int64()),
        },
        metadata=None if plan.format == SORTED else _METADATA,
    )
    data = table_bytes(table)
    if not (path.exists() and path.read_bytes() == data):
        write_bytes(path, data)


def read_plan(data: bytes, samples_per_shard: int, seed: int | None) -> ImagePlan:
    """The plan in the bytes of a whole ``plan.parquet``. Paths are printable text."""
    columns = pq.read_table(pa.BufferReader(data), columns=["sid", "path", "bytes"]).to_pydict()
    rows = list(map(Entry, columns["sid"], columns["path"], columns["bytes"]))
    order = ImagePlan(tuple(rows), samples_per_shard, seed=seed).order
    return ImagePlan(tuple(rows[row] for row in np.argsort(order)), samples_per_shard, seed=seed)


def read_plan_sizes(path: Path) -> dict[str, tuple[str, int]]:
    """``{sid: (path, bytes)}`` of a plan on disk; raises OSError or ArrowInvalid for a damaged file."""
    columns = pq.read_table(path, columns=["sid", "path", "bytes"]).to_pydict()
    return {
        sid: (name, size)
        for sid, name, size in zip(columns["sid"], columns["path"], columns["bytes"], strict=True)
    }


def read_plan_format(path: Path) -> int:
    """The format of the cache of a plan on disk; raises OSError or ArrowInvalid for a damaged file."""
    metadata = pq.read_schema(path).metadata or {}
    stored: dict[str, Any] = json.loads(metadata.get(b"gkd-scale", b"{}"))
    return int(stored.get("format", SORTED))


def table_bytes(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _walk(root: Path, skip: Path | None, tars: list[str]) -> Iterator[str]:
    """Relative paths of images below ``root``; those of tars go into ``tars``.

    Each real folder is read once, so links cannot loop.

    Real folders come first: a folder that is also reached through a link keeps its real path. Hidden
    files and folders (``.name``) are left out.
    """
    seen = {_identity(skip)} - {_identity(root)} if skip is not None and skip.is_dir() else set()
    real, links = [""], list[str]()
    while real or links:
        folder = real.pop() if real else links.pop(0)
        identity = _identity(root / folder)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _listing(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else real).append(path)
            elif Path(entry.name).suffix.lower() in EXTENSIONS:
                yield path
            elif is_tar(entry.name):
                tars.append(path)
        links.sort()


def _listing(folder: Path) -> list[os.DirEntry[str]]:
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


def _sizes(root: Path, paths: Sequence[str]) -> list[int]:
    """Bytes of files below ``root``. A network file system answers several threads at a time."""
    parts = [paths[start : start + _TOGETHER] for start in range(0, len(paths), _TOGETHER)]
    found = prefetch(lambda part: [_size(root / path) for path in part], parts, _THREADS, 2 * _THREADS)
    return [size for part in found for size in part]


def _size(path: Path) -> int:
    """Bytes of a regular file; 0 for anything else, which the build then records as unreadable."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _refuse_collisions(entries: Sequence[Entry]) -> None:
    seen: dict[str, str] = {}
    for entry in entries:
        other = seen.setdefault(entry.sid, entry.name)
        if other != entry.name:
            raise DataError(
                f"{other} and {entry.name} have the same 64-bit name {entry.sid}", "rename one of them"
            )
