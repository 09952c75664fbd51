"""Shards: a tar whose bytes are a pure function of its samples, then an index that commits it.

A shard is either being written (``.tar.part``) or complete. The steps are: temporary name, fsync, re-open
and count, rename the tar, write the Parquet index beside it. A tar without its index does not
count. Plain tools read the tar; this package reads it by the index's offsets.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng import zlib_ng

from gkd_scale.cache.codecs.base import Array
from gkd_scale.cache.rows import METADATA, table_bytes
from gkd_scale.cache.spec import json_bytes
from gkd_scale.errors import DamageError
from gkd_scale.files import atomic, own_temporary, sync_folder

BLOCK = tarfile.BLOCKSIZE
COLUMNS = {
    "sid": pa.string(),
    "member": pa.string(),
    "offset": pa.int64(),
    "bytes": pa.int64(),
    "crc32": pa.uint32(),
    "sample_crc32": pa.uint32(),
}


class Member(NamedTuple):
    """One file of a tar: ``offset``, ``bytes`` and ``crc32`` of its content.

    ``sample_crc32`` is that of its whole sample, headers and padding too; None in the first caches.
    """

    sid: str
    member: str
    offset: int
    bytes: int
    crc32: int
    sample_crc32: int | None = None


@dataclass(frozen=True)
class ShardInfo:
    """What the index says about its tar. ``errors`` maps the sid of an unreadable image to the reason."""

    spec: str
    view: int
    shard: int
    samples: int
    tar_bytes: int
    sha256: str
    errors: dict[str, str]


@dataclass(frozen=True)
class ShardIndex:
    """A shard's index: its info and its members in the order of the tar."""

    info: ShardInfo
    members: list[Member]


def tar_path(folder: Path, view: int, shard: int) -> Path:
    """The path of a shard's tar; its index is the same name with ``.parquet``."""
    return folder / f"v{view:02d}" / f"shard-{shard:06d}.tar"


def index_path(folder: Path, view: int, shard: int) -> Path:
    """The path of a shard's index."""
    return tar_path(folder, view, shard).with_suffix(".parquet")


# -------------------------------------------------------------------------------------- writing


class ShardWriter:
    """Writes one shard. It exists after ``commit``; after ``abort`` nothing of it is left."""

    def __init__(self, folder: Path, spec: str, view: int, shard: int) -> None:
        self.spec, self.view, self.shard = spec, view, shard
        self.path = tar_path(folder, view, shard)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = own_temporary(self.path)
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by commit or abort)
        self.aborted = False
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._members: list[Member] = []
        self._samples = 0

    def add(self, sid: str, members: Mapping[str, bytes]) -> int:
        """Append one sample, its members sorted by name. Returns the bytes of content written."""
        sample, crc = list[Member](), 0
        for name in sorted(members):
            content = members[name]
            header = tar_header(f"{sid}.{name}", len(content))
            sample.append(Member(sid, name, self._size + len(header), len(content), zlib_ng.crc32(content)))
            for data in (header, content, bytes(next_header(len(content)) - len(content))):
                self._write(data)
                crc = zlib_ng.crc32(data, crc)
        self._members += [member._replace(sample_crc32=crc) for member in sample]
        self._samples += 1
        return sum(map(len, members.values()))

    def commit(self, errors: Mapping[str, str]) -> ShardInfo:
        """Close the tar, make it durable, check it, rename it, and write the index."""
        end = 2 * BLOCK
        self._write(bytes(end + -(self._size + end) % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._recount()
        content = self._samples, self._size, self._sha256.hexdigest()
        info = ShardInfo(self.spec, self.view, self.shard, *content, dict(errors))
        self._temporary.replace(self.path)
        sync_folder(self.path.parent)
        index = self.path.with_suffix(".parquet")
        with atomic(index, own_temporary(index)) as file:
            file.write(table_bytes(_index_table(info, self._members)))
        return info

    def abort(self) -> None:
        """Remove the unfinished tar; safe to call at any time, also after ``commit``."""
        self.aborted = True
        with contextlib.suppress(OSError):  # flushing to a full disk fails again; the file goes anyway
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)

    def _recount(self) -> None:
        with tarfile.open(self._temporary, "r:") as tar:
            names = tar.getnames()
        if names != [f"{member.sid}.{member.member}" for member in self._members]:
            raise DamageError(
                f"{self._temporary} reads back {len(names)} members, not the {len(self._members)} written",
                "the disk loses data: check it, then run the same command again",
            )


def tar_header(name: str, size: int) -> bytes:
    """One ustar header, 512 bytes that depend on the name and the size only."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def next_header(end: int) -> int:
    """The offset of the next header after a member whose content ends at ``end``."""
    return end + -end % BLOCK


def npy_bytes(array: Array) -> bytes:
    """An array as the bytes of a .npy file, row-major."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _index_table(info: ShardInfo, members: list[Member]) -> pa.Table:
    columns = list(zip(*members, strict=True)) or [()] * len(COLUMNS)
    schema = pa.schema(list(COLUMNS.items()), metadata={METADATA: json_bytes(asdict(info))})
    return pa.Table.from_arrays(columns, schema=schema)


# -------------------------------------------------------------------------------------- reading


def metadata_of(schema: pa.Schema) -> dict[str, Any]:
    """Our JSON in a Parquet schema; ValueError or KeyError if it is missing."""
    value = json.loads((schema.metadata or {})[METADATA])
    if not isinstance(value, dict):
        raise ValueError("the metadata is not a mapping")
    return value


def read_info(path: Path) -> ShardInfo:
    """The info of an index without its rows; raises an Exception of any kind for a damaged file."""
    return ShardInfo(**metadata_of(pq.read_schema(path)))


def parse_index(data: bytes) -> ShardIndex:
    """The bytes of an index file; raises an Exception of any kind for damaged ones."""
    table = pq.read_table(pa.BufferReader(data), use_threads=False)
    columns = [table.column(name).to_pylist() for name in COLUMNS if name in table.column_names]
    return ShardIndex(
        ShardInfo(**metadata_of(table.schema)), [Member(*row) for row in zip(*columns, strict=True)]
    )


def npy_view(data: memoryview) -> Array:
    """A .npy file in memory to a read-only array on the same bytes."""
    length = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape = _npy_header(bytes(data[:length]))
    return np.frombuffer(data[length:], dtype).reshape(shape)


def require_npy(header: memoryview, array: Array) -> None:
    """ValueError unless the header of a .npy file is that of ``array``."""
    if _npy_header(bytes(header)) != (array.dtype, array.shape):
        raise ValueError(f"not a .npy file of {array.dtype} {array.shape}")


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not a .npy file of version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype.hasobject:
        raise ValueError("not a plain row-major .npy file")
    return dtype, shape
