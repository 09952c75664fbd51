"""``verify``: every byte of a cache against a checksum, nothing trusted.

The chain of checks is that of the files: ``manifest.sha256`` covers the table of the shards and the manifest,
the table covers the spec, the plan and every index, an index covers its tar and each member in it. A file is
parsed only after its checksum was compared, and whatever goes wrong becomes a line, never a traceback.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from zlib_ng import zlib_ng

from gkd_scale import console
from gkd_scale.cache.certificate import PATTERN, certificate_damage
from gkd_scale.cache.codecs.base import STATE
from gkd_scale.cache.config import default_workers
from gkd_scale.cache.manifest import (
    CHECKSUM,
    MANIFEST,
    SHARDS,
    ShardTable,
    is_complete,
    manifest_rows,
    parse_shards,
)
from gkd_scale.cache.plan import PLAN, numbers_of
from gkd_scale.cache.rows import Rows
from gkd_scale.cache.shard import Member, ShardIndex, index_path, parse_index, tar_path
from gkd_scale.cache.spec import FORMAT, SPEC, Spec, read_spec
from gkd_scale.commands import shell
from gkd_scale.errors import CacheError, GkdError, one_line
from gkd_scale.files import sha256_file
from gkd_scale.prefetch import prefetch

_CHUNK = 1 << 20


@dataclass
class _Root:
    """The whole files of the root; None for a damaged one."""

    spec: Spec | None = None
    table: ShardTable | None = None
    rows: Rows | None = None
    """The rows of the manifest: an image each, shard by shard."""

    def sids(self, shard: int) -> list[str] | None:
        """The names of the readable images of a shard, in order; None if nobody knows them."""
        if self.rows is None or self.spec is None:
            return None
        start = shard * self.spec.samples_per_shard
        rows = self.rows.read(start, start + self.spec.samples_per_shard)
        names: list[str] = rows.filter(pc.equal(rows["status"], "ok"))["sid"].to_pylist()
        return names


def verify(path: Path, report: Callable[[str], None], *, quiet: bool = False) -> int:
    """Check the cache at ``path``. Each damage goes to ``report`` as one line; returns their number.

    CacheError if there is no cache at all. ``quiet`` shows neither progress nor summary.
    """
    if not path.is_dir() or not any((path / name).exists() for name in (SPEC, MANIFEST, PLAN, "v00")):
        raise CacheError(f"{path} is not a teacher cache", "give the folder that cache-teacher wrote")
    damages = 0
    root = _Root()
    for line in _check_root(path, root):
        report(line)
        damages += 1
    shards = _shards(path, root)
    for _, lines in _check_shards(path, root, shards, quiet):
        for line in lines:
            report(line)
        damages += len(lines)
    if not quiet:
        console.out.print(_summary(path, root.spec, len(shards), damages), markup=False, soft_wrap=True)
    return damages


def damaged_shards(path: Path, *, quiet: bool = False) -> dict[tuple[int, int], list[str]]:
    """``{(view, shard): lines}`` of the shards of a cache that are not whole; CacheError for no cache."""
    root = _Root()
    for _ in _check_root(path, root):
        pass
    results = _check_shards(path, root, _shards(path, root), quiet)
    return {shard: lines for shard, lines in results if lines}


def _summary(path: Path, spec: Spec | None, shards: int, damages: int) -> str:
    size = sum(tar.stat().st_size for tar in path.glob("v*/*.tar"))
    content = f"{shards} shards, {size / 1e6:.1f} MB checked"
    if damages:
        images = "FOLDER" if spec is None else spec.images_flag
        repair = shell("gkd-scale", "repair", path, "--images", images)
        mend = f"mend it with: {repair} (and the teacher's --teacher-weights)"
        return f"{path} is damaged: {damages} lines above, {content}\n  → {mend}"
    return f"{path} is whole: {content}"


# ------------------------------------------------------------------------------------ the root


def _check_root(path: Path, root: _Root) -> Iterator[str]:
    """Lines about the files of the root; fills ``root``."""
    if not is_complete(path):
        yield f"{MANIFEST}: missing, the cache is unfinished (the same cache-teacher command goes on)"
    try:
        root.spec = read_spec(path)
    except GkdError as error:
        yield f"{SPEC}: {error.message.removeprefix(f'{path / SPEC} ')}"
    except Exception as error:
        yield f"{SPEC}: cannot be read ({one_line(error)[:160]})"
    if root.spec and is_complete(path):
        yield from _check_table(path, root.spec, root)
        yield from _check_manifest(path, root.spec, root)
    state = root.spec is not None and root.spec.codec_state
    for name in (SPEC, PLAN, *([STATE] if state else [])):
        yield from _check_file(path, name, root)
    if root.spec:
        for file in sorted(path.glob(PATTERN)):
            if damage := certificate_damage(file, root.spec.hash()):
                yield f"{file.name}: {damage}"


def _check_table(path: Path, spec: Spec, root: _Root) -> Iterator[str]:
    """The table of the shards; in older caches it is a part of the manifest."""
    name = SHARDS if spec.format == FORMAT else MANIFEST
    data = _bytes(path / name)
    if data is None:
        yield f"{name}: missing"
        return
    lines = {file: f"{_digest(path / file)}  {file}\n".encode() for file in dict.fromkeys((name, MANIFEST))}
    checksums = _bytes(path / CHECKSUM) or b""
    for file, line in lines.items():
        if line not in checksums:
            yield f"{file}: does not match {CHECKSUM}"
    if all(line in checksums for line in lines.values()) and checksums != b"".join(lines.values()):
        yield f"{CHECKSUM}: has other lines too"
    try:
        root.table = parse_shards(data, spec)
    except Exception as error:
        yield f"{name}: cannot be read ({one_line(error)[:160]})"
        return
    if root.table.spec != spec.hash():
        yield f"{name}: is of another spec than {SPEC}"
    if len(root.table.sizes) != spec.shards:
        yield f"{name}: has {len(root.table.sizes)} shards, {SPEC} has {spec.shards}"


def _check_manifest(path: Path, spec: Spec, root: _Root) -> Iterator[str]:
    """The manifest against itself and the table: each name once, as many images a shard as there are."""
    sids, shards = [], []
    try:
        root.rows = manifest_rows(path / MANIFEST)
        for table in root.rows.tables():
            sids.append(numbers_of(table))
            shards.append(table.filter(pc.equal(table["status"], "ok"))["shard"].to_numpy())
        sizes = np.bincount(np.concatenate(shards), minlength=spec.shards)
        names = np.concatenate(sids)
    except Exception as error:
        root.rows = None
        yield f"{MANIFEST}: cannot be read ({one_line(error)[:160]})"
        return
    if duplicates := len(names) - len(np.unique(names)):
        yield f"{MANIFEST}: {duplicates} sids are there twice"
    if root.table is not None and sizes.tolist() != root.table.sizes.tolist():
        yield f"{MANIFEST}: its rows do not add up to its shard sizes"


def _check_file(path: Path, name: str, root: _Root) -> Iterator[str]:
    """A file of the root against the checksum of it."""
    if not (path / name).exists():
        yield f"{name}: missing"
    elif root.table and root.table.files.get(name) != _digest(path / name):
        yield f"{name}: SHA-256 mismatch with {_table_name(root)}"


def _table_name(root: _Root) -> str:
    """The file that holds the checksums of the others."""
    return MANIFEST if root.spec is None or root.spec.format != FORMAT else SHARDS


def _digest(path: Path) -> str:
    """The SHA-256 of a file; '' if it cannot be read."""
    try:
        return sha256_file(path)
    except OSError:
        return ""


def _shards(path: Path, root: _Root) -> list[tuple[int, int]]:
    """(view, shard) of all shards that the spec names, and of all tars that exist."""
    shards = {
        (int(tar.parent.name[1:]), int(tar.stem.removeprefix("shard-")))
        for tar in path.glob("v[0-9][0-9]*/shard-[0-9]*.tar")
        if tar.parent.name[1:].isdigit() and tar.stem.removeprefix("shard-").isdigit()
    }
    if root.spec:
        shards.update(root.spec.view_shards)
    return sorted(shards)


# --------------------------------------------------------------------------------- the shards


def _check_shards(
    path: Path, root: _Root, shards: Sequence[tuple[int, int]], quiet: bool
) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """Each shard and the lines about it, with a progress bar."""
    with console.progress(disable=quiet) as bar:
        task = bar.add_task("verify", total=len(shards))
        work = prefetch(lambda shard: _check_shard(path, root, *shard), shards, min(2, default_workers()), 4)
        for result in zip(shards, work, strict=True):
            yield result
            bar.advance(task)


def _check_shard(path: Path, root: _Root, view: int, shard: int) -> list[str]:
    """Lines about one shard: its index, then its tar."""
    try:
        return list(_shard_lines(path, root, view, shard))
    except Exception as error:  # a check that fails is a damage too
        return [f"{_name(view, shard)}: cannot be checked ({one_line(error)[:160]})"]


def _shard_lines(path: Path, root: _Root, view: int, shard: int) -> Iterator[str]:
    tar, index_file = tar_path(path, view, shard), index_path(path, view, shard)
    tar_name, index_name = _name(view, shard), index_file.relative_to(path).as_posix()
    data = _bytes(index_file)
    if data is None:
        yield f"{index_name}: missing" + ("" if tar.exists() else f", and {tar_name} too")
        return
    if root.table and root.table.index(view, shard) != hashlib.sha256(data).hexdigest():
        yield f"{index_name}: SHA-256 mismatch with {_table_name(root)}"
    try:
        index = parse_index(data)
    except Exception as error:
        yield f"{index_name}: cannot be read ({one_line(error)[:160]})"
        return
    yield from _check_index(index_name, index, root, view, shard)
    if not tar.exists():
        yield f"{tar_name}: missing"
        return
    yield from _check_tar(tar, tar_name, index)


def _check_index(name: str, index: ShardIndex, root: _Root, view: int, shard: int) -> Iterator[str]:
    info = index.info
    if (info.view, info.shard) != (view, shard):
        yield f"{name}: belongs to view {info.view} shard {info.shard}"
    if root.spec and info.spec != root.spec.hash():
        yield f"{name}: is of another spec than {SPEC}"
    sids = list(dict.fromkeys(member.sid for member in index.members))
    if len(sids) != info.samples:
        yield f"{name}: lists {len(sids)} samples, not {info.samples}"
    names = [(member.sid, member.member) for member in index.members]
    if len(set(names)) != len(names):
        yield f"{name}: lists a member twice"
    if root.sids(shard) not in (None, sids):
        yield f"{name}: its samples are not those of {MANIFEST}"


def _check_tar(path: Path, name: str, index: ShardIndex) -> Iterator[str]:
    """One pass over the tar: its size, the CRC32 of each member, the SHA-256 of all bytes."""
    size, lines = path.stat().st_size, 0
    if size != index.info.tar_bytes:
        yield f"{name}: {size} bytes, not {index.info.tar_bytes}"
        lines += 1
    with open(path, "rb", buffering=0) as file:
        tar = _Pass(file)
        for member in index.members:
            problem = _check_member(tar, member)
            if problem:
                yield f"{name}: {member.sid}.{member.member}: {problem}"
                lines += 1
        tar.read(size - tar.position)
    if not lines and tar.sha256.hexdigest() != index.info.sha256:
        yield f"{name}: SHA-256 mismatch outside its members (headers or padding)"


def _check_member(tar: _Pass, member: Member) -> str:
    """What is wrong with a member; '' if nothing."""
    if member.offset < tar.position or member.bytes < 0:
        return "the index places it inside another member"
    tar.read(member.offset - tar.position)
    crc = tar.read(member.bytes)
    if tar.position < member.offset + member.bytes:
        return "missing or cut short"
    return "" if crc == member.crc32 else "CRC32 mismatch"


class _Pass:
    """Reads a file once, in order, through one small buffer; knows the SHA-256 of all that was read."""

    def __init__(self, file: FileIO) -> None:
        self.position = 0
        self.sha256 = hashlib.sha256()
        self._file = file
        self._buffer = memoryview(bytearray(_CHUNK))

    def read(self, size: int) -> int:
        """Read up to ``size`` bytes and return their CRC32."""
        crc = 0
        while size > 0 and (count := self._file.readinto(self._buffer[: min(size, _CHUNK)])):
            self.sha256.update(self._buffer[:count])
            crc = zlib_ng.crc32(self._buffer[:count], crc)
            self.position += count
            size -= count
        return crc


def _name(view: int, shard: int) -> str:
    return tar_path(Path(), view, shard).as_posix()


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
