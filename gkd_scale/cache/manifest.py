"""The last files of a build: a table of the shards and the manifest, which has one row a source image.

``shards.parquet`` has one row a shard and view: its samples and the SHA-256 of its index. Its metadata
holds the SHA-256 of every other file of the root. ``manifest.sha256``, which ``sha256sum -c`` reads, covers
both files. The indexes cover the tars. So every byte of a cache is covered by a checksum, and the chain
starts at one short file. ``manifest.parquet`` appears last: a cache that has it is complete.

A cache is opened with the table of the shards alone, whatever its number of images is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gkd_scale.cache.codecs.base import STATE
from gkd_scale.cache.plan import PLAN, Entry, ImagePlan
from gkd_scale.cache.rows import GROUP, METADATA, Rows, RowWriter, table_bytes
from gkd_scale.cache.shard import ShardInfo, index_path, metadata_of, read_info, tar_path
from gkd_scale.cache.spec import FORMAT, SPEC, Spec, json_bytes
from gkd_scale.commands import shell
from gkd_scale.errors import CacheError, DamageError, DataError
from gkd_scale.files import TEMPORARY, sha256_file, sync_folder, write_bytes, write_text
from gkd_scale.types import Int64Array

MANIFEST = "manifest.parquet"
SHARDS = "shards.parquet"
CHECKSUM = "manifest.sha256"

_COLUMNS = {
    "sid": pa.string(),
    "path": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "shard": pa.int64(),
    "row": pa.int64(),
}
_SHARD_COLUMNS = {"samples": pa.int64(), "index": pa.binary(32)}

ManifestRow = tuple[str, str, str, str | None, int, int | None]
Digests = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ShardTable:
    """The shards of a cache: their ``sizes`` in samples (equal in all views), and their indexes.

    ``identity``, a SHA-256, stands for every byte of the cache. ``spec`` is the hash of the spec, ``indexes``
    (views, shards, 32) are the SHA-256 of the indexes, ``files`` those of the other files by name.
    """

    identity: str
    spec: str
    sizes: Int64Array
    indexes: Digests
    files: dict[str, str]

    def index(self, view: int, shard: int) -> str | None:
        """The SHA-256 of an index, in hex; None for a shard that the table lacks."""
        views, shards, _ = self.indexes.shape
        return self.indexes[view, shard].tobytes().hex() if view < views and shard < shards else None


# ------------------------------------------------------------------------------------- writing


def finish(folder: Path, spec: Spec, plan: ImagePlan) -> dict[str, str]:
    """Write the last files of built shards, unless they are there. Returns ``{path: reason}`` of bad images.

    DataError if no image could be read; CacheError if an image could be read for one view only.
    """
    errors: dict[str, str] = {}
    sizes: list[int] = []

    def rows() -> Iterator[ManifestRow]:
        for shard in range(spec.shards):
            entries = plan.shard(shard)
            info = _shard_info(folder, spec, shard, entries)
            sizes.append(info.samples)
            errors.update(
                {entry.name: info.errors[entry.sid] for entry in entries if entry.sid in info.errors}
            )
            yield from _rows(shard, entries, info)

    temporary = folder / (MANIFEST + TEMPORARY)
    old_rows = list(rows()) if spec.format != FORMAT else []
    if spec.format == FORMAT:
        _write_rows(temporary, rows())
    if len(errors) == len(plan):
        _remove_empty(folder, spec)
        name, reason = next(iter(errors.items()))
        raise DataError(f"none of the {len(errors)} images could be read; {name}: {reason}", "check --images")
    if spec.format == FORMAT:
        _commit(folder, spec, sizes, temporary)
    else:
        _commit_older(folder, spec, sizes, old_rows)
    return errors


def _write_rows(path: Path, rows: Iterator[ManifestRow]) -> None:
    schema = pa.schema(list(_COLUMNS.items()))
    with open(path, "wb") as file:
        with RowWriter(file, schema, plain=("sid", "path")) as writer:
            while chunk := list(islice(rows, GROUP)):
                writer.add(pa.Table.from_arrays(list(zip(*chunk, strict=True)), schema=schema))
        file.flush()
        os.fsync(file.fileno())


def _commit(folder: Path, spec: Spec, sizes: list[int], manifest: Path) -> None:
    """Write the table of the shards and the checksums, then give the manifest its name."""
    indexes = [
        bytes.fromhex(sha256_file(index_path(folder, view, shard))) for view, shard in spec.view_shards
    ]
    digest = sha256_file(manifest)
    about = {"spec": spec.hash(), "files": {**_digests(folder, _root_files(spec)), MANIFEST: digest}}
    schema = pa.schema(list(_SHARD_COLUMNS.items()), metadata={METADATA: json_bytes(about)})
    data = table_bytes(pa.Table.from_arrays([sizes * spec.views, indexes], schema=schema))
    table = hashlib.sha256(data).hexdigest()
    checksums = f"{table}  {SHARDS}\n{digest}  {MANIFEST}\n"
    if holds(folder / MANIFEST, digest) and holds(folder / SHARDS, table) and _checksums(folder) == checksums:
        manifest.unlink()
        return
    write_bytes(folder / SHARDS, data)
    write_text(folder / CHECKSUM, checksums)
    manifest.replace(folder / MANIFEST)
    sync_folder(folder)


def _commit_older(folder: Path, spec: Spec, sizes: list[int], rows: list[ManifestRow]) -> None:
    """The manifest of formats 1 and 2: all rows, sizes of the shards and SHA-256 of every index as JSON."""
    indexes = [index_path(Path(), view, shard).as_posix() for view, shard in spec.view_shards]
    files = _digests(folder, [*_root_files(spec), *indexes])
    about = {"spec": spec.hash(), "shard_sizes": sizes, "files": files}
    schema = pa.schema(list(_COLUMNS.items()), metadata={METADATA: json_bytes(about)})
    data = table_bytes(pa.Table.from_arrays(list(zip(*rows, strict=True)), schema=schema))
    digest = hashlib.sha256(data).hexdigest()
    if not holds(folder / MANIFEST, digest) or _checksums(folder) != f"{digest}  {MANIFEST}\n":
        write_text(folder / CHECKSUM, f"{digest}  {MANIFEST}\n")
        write_bytes(folder / MANIFEST, data)


def _root_files(spec: Spec) -> list[str]:
    return [SPEC, PLAN, *([STATE] if spec.codec_state else [])]


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in names}


def _checksums(folder: Path) -> str:
    try:
        return (folder / CHECKSUM).read_text("ascii", "replace")
    except FileNotFoundError:
        return ""


def holds(path: Path, digest: str | None) -> bool:
    """Whether a file exists with this SHA-256."""
    return path.exists() and sha256_file(path) == digest


def _rows(shard: int, entries: Sequence[Entry], info: ShardInfo) -> Iterator[ManifestRow]:
    row = 0
    for entry in entries:
        reason = info.errors.get(entry.sid)
        if reason is None:
            yield entry.sid, entry.name, "ok", None, shard, row
            row += 1
        else:
            yield entry.sid, entry.name, "error", reason, shard, None


def _shard_info(folder: Path, spec: Spec, shard: int, entries: Sequence[Entry]) -> ShardInfo:
    """The info in the index of a shard's first view.

    CacheError if its views hold different samples; its indexes are removed.
    """
    infos = [read_info(index_path(folder, view, shard)) for view in range(spec.views)]
    errors = Counter(sid for info in infos for sid in info.errors)
    unsteady = {sid for sid, views in errors.items() if views < len(infos)}
    if unsteady:
        for info in infos:
            index_path(folder, info.view, shard).unlink()
        name = next(entry.name for entry in entries if entry.sid in unsteady)
        raise CacheError(
            f"{name} could be read for one view and not for another: images changed during the run",
            "run the same command again: it makes that shard anew",
        )
    return infos[0]


def _remove_empty(folder: Path, spec: Spec) -> None:
    """Remove a cache that holds no sample."""
    for view in range(spec.views):
        shutil.rmtree(tar_path(folder, view, 0).parent, ignore_errors=True)
    for name in (PLAN, SPEC, STATE, MANIFEST + TEMPORARY):
        (folder / name).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- reading


def read_shards(folder: Path, spec: Spec) -> ShardTable:
    """The shards of a complete cache of ``spec``; FileNotFoundError if unfinished, DamageError if damaged."""
    name = SHARDS if spec.format == FORMAT else MANIFEST
    data = (folder / name).read_bytes()
    line, checksums = f"{hashlib.sha256(data).hexdigest()}  {name}\n", _checksums(folder)
    table = parse_shards(data, spec) if checksums.startswith(line) else None
    manifest_line = f"{table.files.get(MANIFEST)}  {MANIFEST}\n" if table and name == SHARDS else ""
    if table is None or checksums != line + manifest_line:
        raise DamageError(
            f"{folder / name} does not match {CHECKSUM}", f"see: {shell('gkd-scale', 'verify', folder)}"
        )
    return table


def parse_shards(data: bytes, spec: Spec) -> ShardTable:
    """The table in the bytes of ``shards.parquet``, or of the manifest of an older format.

    Raises an Exception of any kind for damaged ones.
    """
    identity = hashlib.sha256(data).hexdigest()
    if spec.format == FORMAT:
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        about = metadata_of(table.schema)
        index = table["index"].combine_chunks()
        digests = np.frombuffer(index.buffers()[1], np.uint8, 32 * len(index), 32 * index.offset)
        indexes = digests.reshape(spec.views, -1, 32)
        sizes = table["samples"].to_numpy()[: indexes.shape[1]]
        return ShardTable(identity, about["spec"], sizes, indexes, about["files"])
    about = metadata_of(pq.read_schema(pa.BufferReader(data)))
    sizes, files = about["shard_sizes"], about["files"]
    places = product(range(spec.views), range(len(sizes)))
    names = [index_path(Path(), *place).as_posix() for place in places]
    digests = np.frombuffer(b"".join(bytes.fromhex(files.pop(name)) for name in names), np.uint8)
    indexes = digests.reshape(spec.views, len(sizes), 32)
    return ShardTable(identity, about["spec"], np.array(sizes), indexes, {**files, MANIFEST: identity})


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a complete cache."""
    return (folder / MANIFEST).is_file()


def manifest_rows(path: Path) -> Rows:
    """The rows of a manifest; raises an Exception of any kind for a damaged one."""
    return Rows(path, list(_COLUMNS))
