"""The images of a plan in the order of their keys, in little memory: sorted parts, then all of them merged.

A key is 64 bits of noise that name and seed decide. Images are taken as they are listed; each million of
them becomes a part, a file that is sorted by key. Keys are spread evenly, so the images whose key begins with
one byte are few enough to be sorted at once: a 256th of each part. A listing that was killed goes
on after the parts that it has written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import compress, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gkd_scale.cache.beside import Suspects, suspicious
from gkd_scale.cache.listing import Images, Unit
from gkd_scale.cache.rows import METADATA
from gkd_scale.errors import DataError
from gkd_scale.files import atomic
from gkd_scale.prefetch import BackgroundJobs, prefetch

PARTS = "plan.parts"
"""Folder of the parts in a cache whose plan is being made."""

PART = 1 << 20
"""Images of a part, or more if one folder holds more."""

_TOGETHER = 1 << 16
"""Images that become columns together."""

_BYTES = 256
_SCHEMA = pa.schema(
    {
        "key": pa.uint64(),
        "sid": pa.uint64(),
        "path": pa.large_binary(),
        "bytes": pa.int64(),
        "suspect": pa.bool_(),
    }
)

UInt64 = npt.NDArray[np.uint64]


def number_of(path: str) -> int:
    """The 64-bit BLAKE2b of a path, in the file system's bytes."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "big")


def key_of(sids: UInt64, seed: int) -> UInt64:
    """The keys of images: SplitMix64's finaliser (Steele et al., 2014) of ``sid XOR seed``.

    One to one: different names have different keys.
    """
    key = sids ^ np.uint64(seed)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


class Parts:
    """The images of one plan. ``folder`` keeps the parts, or a temporary one as long as this object lives.

    ``made_from`` identifies the images, ``stamp`` is that of the listing. ``known`` are the units of parts of
    the same images that lie there already; a part with a unit that has changed since is dropped. ``sift``:
    look out for labels among the images.
    """

    def __init__(
        self,
        folder: Path | None,
        made_from: dict[str, Any],
        seed: int,
        stamp: Callable[[str], str],
        *,
        sift: bool,
    ) -> None:
        self._folder, self._made_from, self._seed = folder, made_from, seed
        self._paths: list[str] = []
        self._flags: list[bool] = []
        self._suspects = Suspects()
        self._sizes: list[int] = []
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._units: list[Unit] = []
        self._files: list[Path] = []
        self._writer = BackgroundJobs(depth=1)
        self.known: dict[str, Unit] = {}
        self.images = 0
        self.suspects = Suspects()
        self._sift, self._only_images = sift, False
        for path in sorted(folder.glob("part-*.arrow")) if folder else ():
            self._take(path, stamp)

    def add(self, images: Images, unit: Unit | None = None) -> None:
        """Add (path, bytes) of images: all images of ``unit``, if it is given."""
        paths = [path for path, _ in images]
        self._paths += paths
        self._sizes += [size for _, size in images]
        if self._sift:
            flags = suspicious(paths)
            self._flags += flags
            self._suspects.add(compress(paths, flags))
        self.images += len(images)
        if unit is not None:
            self._units.append(unit)
        if len(self._paths) >= _TOGETHER:
            self._pack()
        if self._rows >= PART:
            self._write()

    @property
    def folder(self) -> Path:
        """The folder of the parts, made on first access."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="gkd-scale-plan-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._folder.mkdir(exist_ok=True)
        return self._folder

    @property
    def many(self) -> bool:
        """Whether they take more than one part."""
        return bool(self._files)

    def in_order(self) -> Iterator[pa.Table]:
        """All images by rising key, some at a time: columns ``key``, ``sid``, ``path``, ``bytes``.

        Of images with one name the first by path keeps it. Another is given the first of the names
        BLAKE2b(path, 0, i), i = 1, 2, .. whose key begins with no smaller byte. DataError if a path is listed
        twice.
        """
        self._pack()
        self._writer.wait()
        last = _sort(self._without_labels(pa.concat_tables([_SCHEMA.empty_table(), *self._tables])))
        if not self._files and not len(_duplicates(last)):
            yield last
            return
        bounds = _bounds(last)
        files = [pa.ipc.open_file(pa.memory_map(str(path))) for path in self._files]

        def load(byte: int) -> pa.Table:
            batches = [pa.Table.from_batches([file.get_batch(byte)], _SCHEMA) for file in files]
            batches.append(last.slice(bounds[byte], bounds[byte + 1] - bounds[byte]))
            return _sort(self._without_labels(pa.concat_tables(batches)))

        pending: dict[int, list[dict[str, Any]]] = {}
        for byte, table in enumerate(prefetch(load, range(_BYTES), workers=1, depth=2)):
            yield _distinct(table, byte, pending, self._seed)

    def _without_labels(self, table: pa.Table) -> pa.Table:
        return table.filter(pc.invert(table["suspect"])) if self._only_images else table

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def leave_out_labels(self, read: Callable[[str], bytes]) -> str | None:
        """Leave out the labels that lie beside images; a line about them, if there are any."""
        self.suspects.merge(self._suspects.to_dict())
        self._suspects = Suspects()
        if not self.suspects.are_labels(self.images, read):
            return None
        self._only_images = True
        self.images -= self.suspects.count
        return self.suspects.note()

    def _pack(self) -> None:
        """Turn the last images into columns."""
        paths = [path.encode() if path.isascii() else os.fsencode(path) for path in self._paths]
        digests = b"".join([hashlib.blake2b(path, digest_size=8).digest() for path in paths])
        sids = np.frombuffer(digests, ">u8").astype(np.uint64)
        flags = self._flags or [False] * len(paths)
        columns = [key_of(sids, self._seed), sids, paths, self._sizes, flags]
        self._tables.append(pa.Table.from_arrays(columns, schema=_SCHEMA))
        self._rows += len(paths)
        self._paths, self._sizes, self._flags = [], [], []

    def _write(self) -> None:
        """Make a part of what was taken, on another thread."""
        self._pack()
        numbers = [int(path.stem.removeprefix("part-")) for path in self._files]
        path = self.folder / f"part-{max(numbers, default=-1) + 1:06d}.arrow"
        about = {**self._made_from, "rows": self._rows, "units": [asdict(unit) for unit in self._units]}
        about["suspects"] = self._suspects.to_dict()
        self.suspects.merge(about["suspects"])
        self._writer.submit(partial(_write_part, path, self._tables, about))
        self._files.append(path)
        self._tables, self._rows, self._units, self._suspects = [], 0, [], Suspects()

    def _take(self, path: Path, stamp: Callable[[str], str]) -> None:
        """Go on with a part of an earlier listing, or remove it."""
        with suppress(Exception):  # damaged, or of a unit that is gone
            with pa.memory_map(str(path)) as file:
                about = json.loads(pa.ipc.open_file(file).schema.metadata[METADATA])
            units = [Unit(**unit) for unit in about.pop("units")]
            rows, suspects = about.pop("rows"), about.pop("suspects")
            if about == self._made_from and units and all(stamp(unit.name) == unit.stamp for unit in units):
                self._files.append(path)
                self.known |= {unit.name: unit for unit in units}
                self.images += rows
                self.suspects.merge(suspects)
                return
        path.unlink()


def _write_part(path: Path, tables: list[pa.Table], about: dict[str, Any]) -> None:
    """One file, sorted, in 256 batches by the first byte of the key."""
    table = _sort(pa.concat_tables(tables))
    schema = _SCHEMA.with_metadata({METADATA: json.dumps(about).encode()})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with atomic(path) as file, pa.ipc.new_file(file, schema, options=options) as writer:
        for start, stop in pairwise(_bounds(table)):
            writer.write_batch(_one_batch(table.slice(start, stop - start), schema))


def _one_batch(table: pa.Table, schema: pa.Schema) -> pa.RecordBatch:
    batches = table.replace_schema_metadata(schema.metadata).combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema)


def _sort(table: pa.Table) -> pa.Table:
    return table.take(pa.array(np.argsort(table["key"].to_numpy(), kind="stable")))


def _bounds(table: pa.Table) -> list[int]:
    """The first row of a sorted table for each first byte of the key, and the number of rows."""
    first = np.arange(_BYTES, dtype=np.uint64) << np.uint64(56)
    return [*np.searchsorted(table["key"].to_numpy(), first).tolist(), len(table)]


# ----------------------------------------------------------------------------- images of one name


def _distinct(table: pa.Table, byte: int, pending: dict[int, list[dict[str, Any]]], seed: int) -> pa.Table:
    """The sorted ``table`` with the ``pending`` images whose keys begin with ``byte``, without equal keys.

    Images that lose their name go to ``pending``, by the first byte of their new key.
    """
    while True:
        if byte in pending:
            table = _sort(pa.concat_tables([table, pa.Table.from_pylist(pending.pop(byte), _SCHEMA)]))
        duplicates = _duplicates(table)
        if not len(duplicates):
            return table
        for row in table.take(duplicates).to_pylist():
            image = _rename(row, byte, seed)
            pending.setdefault(image["key"] >> 56, []).append(image)
        table = table.filter(pa.array(~np.isin(np.arange(len(table)), duplicates)))


def _duplicates(table: pa.Table) -> npt.NDArray[np.int64]:
    """The rows of a sorted table whose key an image with an earlier path has; DataError for equal paths."""
    keys = table["key"].to_numpy()
    duplicates: list[int] = []
    for key in np.unique(keys[1:][keys[1:] == keys[:-1]]):
        first, past = np.searchsorted(keys, key), np.searchsorted(keys, key, "right")
        paths = table["path"][first:past].to_pylist()
        if len(set(paths)) < len(paths):
            raise DataError(f"{os.fsdecode(min(paths))} is listed twice", "name each image once")
        duplicates += [first + row for row, path in enumerate(paths) if path != min(paths)]
    return np.array(duplicates, np.int64)


def _rename(row: dict[str, Any], byte: int, seed: int) -> dict[str, Any]:
    """An image under the first of its further names whose key begins with ``byte`` or a larger one."""
    for times in count(1):
        sid = number_of(os.fsdecode(row["path"]) + f"\0{times}")
        key = int(key_of(np.array([sid], np.uint64), seed)[0])
        if key >> 56 >= byte:
            return {**row, "sid": sid, "key": key}
    raise AssertionError("unreachable")
