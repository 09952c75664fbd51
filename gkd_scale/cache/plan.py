"""The plan: the images of a cache, the name and the shard of each.

The plan is made before the teacher sees its first pixel and never changes: shards are cut, a fixed number
of images each, from the images in the order of their keys, readable or not. A resumed build, another worker
or another node therefore agree about every shard without talking to each other. A key is noise: training
mixes a few shards at a time, and a folder with a subfolder a class would otherwise give batches of few
classes.

A plan is a Parquet file, made and read a few images at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gkd_scale import console
from gkd_scale.cache import older
from gkd_scale.cache.listing import Listing, listing_of
from gkd_scale.cache.location import printable
from gkd_scale.cache.parts import PARTS, Parts, UInt64, number_of
from gkd_scale.cache.rows import METADATA, Rows, RowWriter
from gkd_scale.cache.source import LabelledSource, Source, ViewSource, open_source
from gkd_scale.cache.spec import FORMAT, OLDEST, Spec
from gkd_scale.files import atomic, sha256_file, write_bytes
from gkd_scale.randomness import seed_of

PLAN = "plan.parquet"

_SCHEMA = pa.schema({"sid": pa.string(), "path": pa.string(), "bytes": pa.int64(), "shard": pa.int64()})
_HEX = np.array([int.from_bytes(f"{byte:02x}".encode(), "little") for byte in range(256)], "<u2")
"""The two hex digits of each byte."""


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
    """The images in the order of the shards: the rows of ``plan.parquet``, read a few at a time."""

    rows: Rows
    samples_per_shard: int
    digest: str
    """SHA-256 over the names and sizes of the images."""
    seed: int = 0
    format: int = FORMAT
    """Version of the cache's files."""
    source: Source | None = None
    """What reads the images; None for a folder."""
    notes: tuple[str, ...] = ()
    """Lines about files beside the images that are left out."""
    view_source: ViewSource | None = None
    """The source of views that a cache stores already; None if they are made of the images."""
    raw: dict[str, str] = field(default_factory=dict)
    """Paths by sid of images whose path is not valid Unicode; the file has it in an escaped form."""
    _parts: Parts | None = None
    """Keeps the file of the rows alive, if it lies in their folder."""

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self.rows)

    def __iter__(self) -> Iterator[Entry]:
        """All images in the order of the shards."""
        for table in self.rows.tables():
            yield from self._entries(table)

    @property
    def shards(self) -> int:
        return -(-len(self) // self.samples_per_shard)

    def shard(self, shard: int) -> tuple[Entry, ...]:
        """The images of one shard."""
        start = shard * self.samples_per_shard
        return self._entries(self.rows.read(start, start + self.samples_per_shard))

    def image(self, row: int) -> Entry:
        """One image by its place in the order of the shards."""
        return self._entries(self.rows.read(row, row + 1))[0]

    def size_of(self, shard: int) -> int:
        """The number of images of one shard."""
        return min(self.samples_per_shard, len(self) - shard * self.samples_per_shard)

    def spread(self, most: int) -> list[Entry]:
        """At most ``most`` images, evenly spread."""
        places = np.arange(0, len(self), max(1, len(self) // most))[:most]
        if self.format != FORMAT:  # they were spread over the sorted list
            places = np.argsort(older.order(len(self), self.seed, self.format))[places]
        by_place = {place: self.image(place) for place in np.sort(places).tolist()}
        return [by_place[place] for place in places.tolist()]

    def names(self) -> tuple[UInt64, np.ndarray[Any, np.dtype[np.int64]]]:
        """The sids as numbers, and the sizes in bytes, of all images."""
        sids, sizes = zip(
            *((numbers_of(table), table["bytes"].to_numpy()) for table in self.rows.tables()), strict=True
        )
        return np.concatenate(sids), np.concatenate(sizes)

    def hash(self) -> str:
        """SHA-256 over the names and sizes of the images."""
        return self.digest

    def _entries(self, table: pa.Table) -> tuple[Entry, ...]:
        columns = (table[name].to_pylist() for name in ("sid", "path", "bytes"))
        return tuple(
            Entry(sid, self.raw.get(sid, path), size) for sid, path, size in zip(*columns, strict=True)
        )


def sid_of(path: str) -> str:
    """The name of a sample, 16 lowercase hex digits: the 64-bit BLAKE2b of its relative path."""
    return f"{number_of(path):016x}"


# ------------------------------------------------------------------------------------ making it


def make_plan(
    images: str | Path,
    samples_per_shard: int,
    skip: Path | None = None,
    source: Source | None = None,
    seed: int = 0,
    *,
    version: int = FORMAT,
    folder: Path | None = None,
    quiet: bool = True,
) -> ImagePlan:
    """The plan of a folder or another source; ``skip`` is a folder inside it that is left out (the cache).

    ``source`` reads ``images`` if the caller has opened them. ``folder`` is that of the cache: the list of
    many images grows in it, and goes on there after a kill. ``quiet`` shows no progress bar.

    Raises DataError for a folder that is missing, cannot be listed or holds no image.
    """
    source = source or open_source(images)
    listing, made_from = listing_of(images, skip, source), {"images": str(images), "seed": seed}
    home, sift = None if folder is None else folder / PARTS, not isinstance(source, LabelledSource)
    parts = Parts(home, made_from, seed_of("plan", seed), listing.stamp, sift=sift)
    if not _collect(listing, parts, quiet):  # a folder that was listed before is no longer reached
        parts.remove()
        return make_plan(
            images, samples_per_shard, skip, source, seed, version=version, folder=folder, quiet=quiet
        )
    read = source.read if source is not None else lambda path: (Path(images) / path).read_bytes()
    labels = parts.leave_out_labels(read)
    notes = (*listing.notes, *([labels] if labels else []))
    if version != FORMAT:
        return _old_plan(parts, samples_per_shard, seed, version, source, notes)
    rows, digest, raw = _write(parts, samples_per_shard)
    return ImagePlan(rows, samples_per_shard, digest, seed, source=source, notes=notes, raw=raw, _parts=parts)


def _collect(listing: Listing, parts: Parts, quiet: bool) -> bool:
    """Add all images of a listing; False if a known unit is gone. DataError if there are no images."""
    missing = set(parts.known)
    with console.progress(disable=quiet) as bar:
        task = bar.add_task("list images", total=None, completed=parts.images)
        for unit, images in listing.units(parts.known):
            if unit is not None and unit.name in parts.known:
                missing.discard(unit.name)
            else:
                parts.add(images, unit)
            bar.update(task, completed=parts.images)
    if not parts.images:
        raise listing.empty()
    return not missing


def _write(parts: Parts, samples_per_shard: int) -> tuple[Rows, str, dict[str, str]]:
    """The plan's rows, as a file beside the parts if they are many; their digest; and the escaped paths."""
    state, raw, rows = hashlib.sha256(), dict[str, str](), 0
    path = parts.folder / PLAN if parts.many else None
    schema = _SCHEMA.with_metadata({METADATA: json.dumps({"format": FORMAT}).encode()})
    with io.BytesIO() if path is None else open(path, "wb") as file:
        with RowWriter(file, schema, plain=("sid", "path", "bytes")) as writer:
            for table in parts.in_order():
                sids, names = _hex(table["sid"].to_numpy()), _printable(table["path"], table["sid"], raw)
                shards = pa.array((rows + np.arange(len(table))) // samples_per_shard)
                writer.add(pa.Table.from_arrays([sids, names, table["bytes"], shards], schema=schema))
                lines = pc.binary_join_element_wise(sids, " ", table["bytes"].cast(pa.string()), "\n", "")
                state.update("".join(lines.to_pylist()).encode())
                rows += len(table)
        file.flush()
        if path is not None:
            os.fsync(file.fileno())
        rows_file = file.getvalue() if isinstance(file, io.BytesIO) else Path(file.name)
    return Rows(rows_file, _SCHEMA.names[:3]), state.hexdigest(), raw


def _hex(sids: UInt64) -> pa.Array:
    """Numbers as 16 hex digits each."""
    digits = _HEX[sids.astype(">u8").view(np.uint8)]
    offsets = np.arange(len(sids) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(sids), pa.py_buffer(offsets), pa.py_buffer(digits))


def numbers_of(table: pa.Table) -> UInt64:
    """The column ``sid`` as numbers."""
    return np.array([int(sid, 16) for sid in table["sid"].to_pylist()], np.uint64)


def _printable(paths: pa.ChunkedArray, sids: pa.ChunkedArray, raw: dict[str, str]) -> pa.ChunkedArray:
    """Paths as text. Those that are not valid Unicode are escaped, and go to ``raw`` by sid."""
    with contextlib.suppress(pa.ArrowInvalid):
        return paths.cast(pa.string())
    names = []
    for path, sid in zip(map(os.fsdecode, paths.to_pylist()), sids.to_pylist(), strict=True):
        names.append(printable(path))
        if names[-1] != path:
            raw[f"{sid:016x}"] = path
    return pa.chunked_array([pa.array(names, pa.string())])


# -------------------------------------------------------------------------------- as a file


def write_plan(plan: ImagePlan, path: Path) -> ImagePlan:
    """Write ``plan.parquet``: a row an image with sid, path, bytes, shard. A whole file stays as it is.

    Returns the plan that reads that file.
    """
    rows_file, parts = plan.rows.file, path.parent / PARTS
    if isinstance(rows_file, bytes):
        if not (path.exists() and path.read_bytes() == rows_file):
            write_bytes(path, rows_file)
    elif not (path.exists() and sha256_file(path) == sha256_file(rows_file)):
        if rows_file.parent == parts:
            rows_file.replace(path)
        else:
            with open(rows_file, "rb") as source, atomic(path) as file:
                shutil.copyfileobj(source, file)
    shutil.rmtree(parts, ignore_errors=True)
    return replace(plan, rows=Rows(path, _SCHEMA.names[:3]), _parts=None)


def read_plan(path: Path, spec: Spec) -> ImagePlan:
    """The plan of a cache of ``spec``. Paths are printable text."""
    rows = Rows(path, _SCHEMA.names[:3])
    return ImagePlan(rows, spec.samples_per_shard, spec.plan, spec.seed, spec.format)


def read_plan_format(path: Path) -> int:
    """The format of the cache of a plan on disk; raises OSError or ArrowInvalid for a damaged file."""
    metadata = pq.read_schema(path).metadata or {}
    content: dict[str, Any] = json.loads(metadata.get(METADATA, b"{}"))
    return int(content.get("format", OLDEST))


def _old_plan(
    parts: Parts,
    samples_per_shard: int,
    seed: int,
    version: int,
    source: Source | None,
    notes: tuple[str, ...],
) -> ImagePlan:
    """The plan of a cache of an older format, to go on with it."""
    columns = pa.concat_tables(list(parts.in_order()))
    paths = sorted(
        zip(map(os.fsdecode, columns["path"].to_pylist()), columns["bytes"].to_pylist(), strict=True)
    )
    entries = [Entry(sid_of(path), path, size) for path, size in paths]
    digest = hashlib.sha256("".join(f"{entry.sid} {entry.bytes}\n" for entry in entries).encode()).hexdigest()
    entries = [entries[place] for place in older.order(len(entries), seed, version)]
    lines = [(entry.sid, entry.name, entry.bytes) for entry in entries]
    raw = {entry.sid: entry.path for entry in entries if entry.path != entry.name}
    data = older.plan_bytes(_SCHEMA, lines, samples_per_shard, version)
    rows = Rows(data, _SCHEMA.names[:3])
    return ImagePlan(rows, samples_per_shard, digest, seed, version, source, notes, raw=raw)
