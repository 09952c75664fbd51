"""``verify``: every byte of a cache against a checksum, nothing trusted.

The chain of checks is that of the files: ``manifest.sha256`` covers the manifest, the manifest covers
the spec, the plan and every index, an index covers its tar and each member in it. A file is parsed only
after its checksum was compared, and whatever goes wrong becomes a line, never a traceback.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng import zlib_ng

from gkd_scale import console
from gkd_scale.cache.certificate import PATTERN, certificate_damage
from gkd_scale.cache.codecs.base import STATE
from gkd_scale.cache.config import default_workers
from gkd_scale.cache.manifest import CHECKSUM, MANIFEST, ManifestInfo, read_manifest_rows
from gkd_scale.cache.plan import PLAN
from gkd_scale.cache.shard import (
    Member,
    ShardIndex,
    index_path,
    metadata_of,
    parse_index,
    tar_path,
)
from gkd_scale.cache.spec import SPEC, Spec, read_spec
from gkd_scale.commands import shell
from gkd_scale.errors import CacheError, GkdError
from gkd_scale.prefetch import prefetch

_CHUNK = 1 << 20


@dataclass
class _Root:
    """The whole files of the root; None for a damaged one."""

    spec: Spec | None = None
    manifest: ManifestInfo | None = None
    rows: dict[int, list[str]] | None = None
    """sids of the readable images of each shard, in order."""


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
    with console.progress(disable=quiet) as bar:
        task = bar.add_task("verify", total=len(shards))
        work = prefetch(lambda at: _check_shard(path, root, *at), shards, min(2, default_workers()), 4)
        for lines in work:
            for line in lines:
                report(line)
            damages += len(lines)
            bar.advance(task)
    if not quiet:
        console.out.print(_summary(path, root.spec, len(shards), damages), markup=False, soft_wrap=True)
    return damages


def damaged_shards(path: Path, *, quiet: bool = False) -> dict[tuple[int, int], list[str]]:
    """``{(view, shard): lines}`` of the shards of a cache that are not whole; CacheError for no cache."""
    root = _Root()
    for _ in _check_root(path, root):
        pass
    shards = _shards(path, root)
    found: dict[tuple[int, int], list[str]] = {}
    with console.progress(disable=quiet) as bar:
        task = bar.add_task("verify", total=len(shards))
        work = prefetch(lambda at: _check_shard(path, root, *at), shards, min(2, default_workers()), 4)
        for at, lines in zip(shards, work, strict=True):
            if lines:
                found[at] = lines
            bar.advance(task)
    return found


def _summary(path: Path, spec: Spec | None, shards: int, damages: int) -> str:
    size = sum(tar.stat().st_size for tar in path.glob("v*/*.tar"))
    checked = f"{shards} shards, {size / 1e6:.1f} MB checked"
    if damages:
        images = "FOLDER" if spec is None else spec.images_flag
        repair = shell("gkd-scale", "repair", path, "--images", images)
        mend = f"mend it with: {repair} (and the teacher's --teacher-weights)"
        return f"{path} is damaged: {damages} lines above, {checked}\n  → {mend}"
    return f"{path} is whole: {checked}"


# ------------------------------------------------------------------------------------ the root


def _check_root(path: Path, root: _Root) -> Iterator[str]:
    """Lines about the files of the root; fills ``root``."""
    manifest = _bytes(path / MANIFEST)
    if manifest is None:
        yield f"{MANIFEST}: missing, the cache is unfinished (the same cache-teacher command goes on)"
    else:
        yield from _check_manifest(path, manifest, root)
    try:
        root.spec = read_spec(path)
    except GkdError as error:
        yield f"{SPEC}: {error.message.removeprefix(f'{path / SPEC} ')}"
    except Exception as error:
        yield f"{SPEC}: cannot be read ({_reason(error)})"
    fitted = root.spec is not None and root.spec.codec_state
    for name in (SPEC, PLAN, *([STATE] if fitted else [])):
        yield from _check_small(path, name, root)
    if root.spec:
        yield from _check_certificates(path, root.spec)
    if root.spec and root.manifest:
        if root.manifest.spec != root.spec.hash():
            yield f"{MANIFEST}: is of another spec than {SPEC}"
        if len(root.manifest.shard_sizes) != root.spec.shards:
            yield f"{MANIFEST}: has {len(root.manifest.shard_sizes)} shards, {SPEC} has {root.spec.shards}"


def _check_manifest(path: Path, data: bytes, root: _Root) -> Iterator[str]:
    expected = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n".encode()
    if _bytes(path / CHECKSUM) != expected:
        yield f"{MANIFEST}: does not match {CHECKSUM}"
    try:
        root.manifest = ManifestInfo(**metadata_of(pq.read_schema(pa.BufferReader(data))))
        rows = read_manifest_rows(data)
        root.rows = {shard: [] for shard in range(len(root.manifest.shard_sizes))}
        for row in rows:
            if row["status"] == "ok":
                root.rows[row["shard"]].append(row["sid"])
    except Exception as error:
        root.manifest = root.rows = None
        yield f"{MANIFEST}: cannot be read ({_reason(error)})"
        return
    sids = {row["sid"] for row in rows}
    if len(sids) != len(rows):
        yield f"{MANIFEST}: {len(rows) - len(sids)} sids are there twice"
    sizes = [len(of_shard) for of_shard in root.rows.values()]
    if sizes != root.manifest.shard_sizes:
        yield f"{MANIFEST}: its rows do not add up to its shard sizes"


def _check_certificates(path: Path, spec: Spec) -> Iterator[str]:
    for file in sorted(path.glob(PATTERN)):
        if damage := certificate_damage(file, spec.hash()):
            yield f"{file.name}: {damage}"


def _check_small(path: Path, name: str, root: _Root) -> Iterator[str]:
    """A small file against the manifest's checksum of it."""
    data = _bytes(path / name)
    if data is None:
        yield f"{name}: missing"
    elif root.manifest and root.manifest.files.get(name) != hashlib.sha256(data).hexdigest():
        yield f"{name}: SHA-256 mismatch with {MANIFEST}"


def _shards(path: Path, root: _Root) -> list[tuple[int, int]]:
    """(view, shard) of all shards that the spec, or else the manifest, names, and of all tars that exist."""
    found = {
        (int(tar.parent.name[1:]), int(tar.stem.removeprefix("shard-")))
        for tar in path.glob("v[0-9][0-9]*/shard-[0-9]*.tar")
        if tar.parent.name[1:].isdigit() and tar.stem.removeprefix("shard-").isdigit()
    }
    if root.spec:
        found |= {(view, shard) for view in range(root.spec.views) for shard in range(root.spec.shards)}
    elif root.manifest:
        names = [Path(name) for name in root.manifest.files if name.endswith(".parquet") and "/" in name]
        found |= {(int(name.parent.name[1:]), int(name.stem.removeprefix("shard-"))) for name in names}
    return sorted(found)


# --------------------------------------------------------------------------------- the shards


def _check_shard(path: Path, root: _Root, view: int, shard: int) -> list[str]:
    """Lines about one shard: its index, then its tar."""
    try:
        return list(_shard_lines(path, root, view, shard))
    except Exception as error:  # a check that fails is a damage too
        return [f"{_name(view, shard)}: cannot be checked ({_reason(error)})"]


def _shard_lines(path: Path, root: _Root, view: int, shard: int) -> Iterator[str]:
    tar, index_file = tar_path(path, view, shard), index_path(path, view, shard)
    tar_name, index_name = _name(view, shard), index_file.relative_to(path).as_posix()
    data = _bytes(index_file)
    if data is None:
        yield f"{index_name}: missing" + ("" if tar.exists() else f", and {tar_name} too")
        return
    if root.manifest and root.manifest.files.get(index_name) != hashlib.sha256(data).hexdigest():
        yield f"{index_name}: SHA-256 mismatch with {MANIFEST}"
    try:
        index = parse_index(data)
    except Exception as error:
        yield f"{index_name}: cannot be read ({_reason(error)})"
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
    if root.rows is not None and root.rows.get(shard) != sids:
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
        while size > 0 and (got := self._file.readinto(self._buffer[: min(size, _CHUNK)])):
            self.sha256.update(self._buffer[:got])
            crc = zlib_ng.crc32(self._buffer[:got], crc)
            self.position += got
            size -= got
        return crc


def _name(view: int, shard: int) -> str:
    return tar_path(Path(), view, shard).as_posix()


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:160] or type(error).__name__
