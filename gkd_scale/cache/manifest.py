"""The manifest: the last file of a build, one row a source image. A cache that has it is complete.

Its metadata holds the sizes of the shards and the SHA-256 of every small file (spec, plan, indexes);
``manifest.sha256``, which ``sha256sum -c`` reads, covers the manifest. The indexes cover the tars. So
every byte of a cache is covered by a checksum, and the chain starts at one short file.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gkd_scale.cache.codecs.base import STATE
from gkd_scale.cache.plan import PLAN, ImagePlan, table_bytes
from gkd_scale.cache.shard import (
    METADATA,
    ShardInfo,
    index_path,
    json_bytes,
    metadata_of,
    read_info,
    tar_path,
)
from gkd_scale.cache.spec import SPEC, Spec
from gkd_scale.commands import shell
from gkd_scale.errors import CacheError, DamageError, DataError
from gkd_scale.files import sha256_file, write_bytes, write_text

MANIFEST = "manifest.parquet"
CHECKSUM = "manifest.sha256"

_COLUMNS = {
    "sid": pa.string(),
    "path": pa.string(),
    "status": pa.string(),
    "error": pa.string(),
    "shard": pa.int64(),
    "row": pa.int64(),
}


@dataclass(frozen=True)
class ManifestInfo:
    """``spec`` hash, ``shard_sizes`` in samples (equal in all views), ``files`` {name: SHA-256}."""

    spec: str
    shard_sizes: list[int]
    files: dict[str, str]


def finish(folder: Path, spec: Spec, plan: ImagePlan) -> dict[str, str]:
    """Write the manifest of built shards, unless it exists. Returns ``{path: reason}`` of bad images.

    DataError if no image could be read; CacheError if an image could be read for one view only.
    """
    infos = [
        [read_info(index_path(folder, view, shard)) for shard in range(spec.shards)]
        for view in range(spec.views)
    ]
    _refuse_disagreement(folder, plan, infos)
    errors = {sid: reason for info in infos[0] for sid, reason in info.errors.items()}
    if len(errors) == len(plan.entries):
        _remove_empty(folder, spec)
        example = plan.entries[0]
        raise DataError(
            f"none of the {len(errors)} images could be read; {example.name}: {errors[example.sid]}",
            "check --images",
        )
    data = table_bytes(_table(folder, spec, plan, infos))
    digest = hashlib.sha256(data).hexdigest()
    if not holds(folder / MANIFEST, digest) or not _checksum_is(folder, digest):
        write_text(folder / CHECKSUM, f"{digest}  {MANIFEST}\n")
        write_bytes(folder / MANIFEST, data)
    return {entry.name: errors[entry.sid] for entry in plan.entries if entry.sid in errors}


def read_manifest(folder: Path) -> bytes:
    """The bytes of a whole manifest; FileNotFoundError if unfinished, DamageError if damaged."""
    data = (folder / MANIFEST).read_bytes()
    if not _checksum_is(folder, hashlib.sha256(data).hexdigest()):
        raise DamageError(
            f"{folder / MANIFEST} does not match {CHECKSUM}", f"see: {shell('gkd-scale', 'verify', folder)}"
        )
    return data


def manifest_info(data: bytes) -> ManifestInfo:
    """The metadata in the bytes of a manifest."""
    return ManifestInfo(**metadata_of(pq.read_schema(pa.BufferReader(data))))


def read_manifest_info(folder: Path) -> ManifestInfo:
    """The metadata of a whole manifest; errors as :func:`read_manifest`."""
    return manifest_info(read_manifest(folder))


def read_outcomes(data: bytes) -> dict[str, str | None]:
    """``{sid: why it could not be read, or None}`` of a manifest's bytes, in the order of the samples."""
    table = pq.read_table(pa.BufferReader(data), columns=["sid", "error"])
    return dict(zip(table["sid"].to_pylist(), table["error"].to_pylist(), strict=True))


def read_manifest_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows of a manifest's bytes; raises an Exception of any kind for damaged ones."""
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(data), columns=list(_COLUMNS)).to_pylist()
    return rows


def _checksum_is(folder: Path, digest: str) -> bool:
    try:
        return (folder / CHECKSUM).read_bytes() == f"{digest}  {MANIFEST}\n".encode()
    except FileNotFoundError:
        return False


def holds(path: Path, digest: str | None) -> bool:
    """Whether a file exists with this SHA-256."""
    return path.exists() and sha256_file(path) == digest


def _table(folder: Path, spec: Spec, plan: ImagePlan, infos: list[list[ShardInfo]]) -> pa.Table:
    rows: list[tuple[str, str, str, str | None, int, int | None]] = []
    for shard, info in enumerate(infos[0]):
        row = 0
        for entry in plan.shard(shard):
            reason = info.errors.get(entry.sid)
            if reason is None:
                rows.append((entry.sid, entry.name, "ok", None, shard, row))
                row += 1
            else:
                rows.append((entry.sid, entry.name, "error", reason, shard, None))
    names = [SPEC, PLAN, *([STATE] if spec.codec_state else [])] + [
        index_path(folder, view, shard).relative_to(folder).as_posix()
        for view in range(spec.views)
        for shard in range(spec.shards)
    ]
    metadata = {
        "spec": spec.hash(),
        "shard_sizes": [info.samples for info in infos[0]],
        "files": {name: sha256_file(folder / name) for name in names},
    }
    arrays = [
        pa.array(column, kind)
        for column, kind in zip(zip(*rows, strict=True), _COLUMNS.values(), strict=True)
    ]
    return pa.Table.from_arrays(
        arrays, schema=pa.schema(list(_COLUMNS.items()), metadata={METADATA: json_bytes(metadata)})
    )


def _refuse_disagreement(folder: Path, plan: ImagePlan, infos: list[list[ShardInfo]]) -> None:
    """CacheError if the views of a shard hold different samples; its indexes are removed."""
    for shard, views in enumerate(zip(*infos, strict=True)):
        unsteady = set().union(*(info.errors for info in views)) - set(views[0].errors).intersection(
            *(info.errors for info in views)
        )
        if unsteady:
            for info in views:
                index_path(folder, info.view, shard).unlink()
            name = next(entry.name for entry in plan.shard(shard) if entry.sid in unsteady)
            raise CacheError(
                f"{name} could be read for one view and not for another: images changed during the run",
                "run the same command again: it makes that shard anew",
            )


def _remove_empty(folder: Path, spec: Spec) -> None:
    """Remove a cache that holds no sample."""
    for view in range(spec.views):
        shutil.rmtree(tar_path(folder, view, 0).parent, ignore_errors=True)
    for name in (PLAN, SPEC, STATE):
        (folder / name).unlink(missing_ok=True)
