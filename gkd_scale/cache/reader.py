"""Reading a cache: any sample at any time, every byte checked.

A sample's members lie next to each other in its tar, so one ``preadv`` fetches them all, with their
headers and padding; tokens that need no decoding go straight into their row of the batch. All of it is
checked against the sample's CRC32, so an epoch leaves no byte of a shard unchecked. If that fails, the
members are checked one by one, to name the damaged one. An index is loaded when its shard is first read; a
bounded number of indexes and file descriptors stays open. There is no lock and no shared file position:
threads and forked processes may read at any time.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from zlib_ng import zlib_ng

from gkd_scale.cache.codecs.base import STATE, Array, Codec, Float16
from gkd_scale.cache.codecs.registry import load_codec
from gkd_scale.cache.location import is_url
from gkd_scale.cache.manifest import MANIFEST, ShardTable, holds, is_complete, read_shards
from gkd_scale.cache.plan import PLAN
from gkd_scale.cache.remote import Mirror
from gkd_scale.cache.shard import (
    BLOCK,
    Member,
    index_path,
    next_header,
    npy_view,
    parse_index,
    require_npy,
    tar_header,
    tar_path,
)
from gkd_scale.cache.spec import SPEC, Spec, differences, read_spec
from gkd_scale.cache.views import decode
from gkd_scale.commands import shell
from gkd_scale.errors import CacheError, DamageError
from gkd_scale.types import Grid, Size

MIRRORS = Path.home() / ".cache" / "gkd-scale"
"""The folder of the mirrors of remote caches."""

MIRROR_LIMIT = 50 * 10**9
"""Bytes of tars that a mirror keeps."""

OPEN_SHARDS = 64
"""Indexes and tars that one cache keeps open."""

_LARGE = 1 << 26
"""Bytes of a plan that is not read when its cache is opened."""

_NO_ROW = memoryview(bytearray())


class SampleImage(NamedTuple):
    """The parts of a sample that are returned rather than written into the caller's arrays: name and JPEG.

    ``jpeg`` is empty if another cache stores the pixels.
    """

    sid: str
    jpeg: memoryview


class EncodedSample(NamedTuple):
    """A sample whose patch tokens are ``members`` of its codec."""

    image: SampleImage
    codec: Codec
    members: dict[str, Array]


class Sample(NamedTuple):
    """One stored sample: JPEG bytes, CLS (C,) fp16, patch tokens (N, C) fp16.

    ``jpeg`` is empty if another cache stores the pixels.
    """

    sid: str
    jpeg: bytes
    cls: Float16
    patches: Float16


class Item(NamedTuple):
    """One stored sample: ``pixels`` (3, H, W) uint8, ``cls`` (C,) and ``patches`` (N, C) float16."""

    sid: str
    pixels: Tensor
    cls: Tensor
    patches: Tensor


class _Index(NamedTuple):
    """The members of each sample of a shard, the end of the last one, and the bytes of the tar."""

    samples: list[list[Member]]
    last: int
    tar_bytes: int

    def follows(self, member: Member) -> int:
        """The end of the zeros after a member: the next header, or the end of the tar."""
        end = member.offset + member.bytes
        return self.tar_bytes if end == self.last else next_header(end)


class _File:
    """A file descriptor that closes with its last reference."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, buffers: list[memoryview], offset: int) -> int:
        """Fill the buffers from ``offset``; the bytes read, fewer at the end of the file.

        The caller's reference keeps the file open meanwhile.
        """
        return os.preadv(self._descriptor, buffers, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class Cache(Dataset[Item]):
    """A complete cache on disk. Sample ``index`` counts the readable images in plan order.

    Also a map-style torch dataset of all views one after the other, for any ``DataLoader``; :func:`train
    <gkd_scale.distill.stage1.train>` reads faster, whole batches at a time.
    """

    def __init__(self, path: Path, spec: Spec, table: ShardTable, mirror: Mirror | None = None) -> None:
        self._mirror = mirror
        self._source, self._options = str(path), dict[str, Any]()
        self.path, self.spec, self._table = path, spec, table
        self.shard_sizes: tuple[int, ...] = tuple(table.sizes.tolist())
        self.manifest = table.identity
        """A SHA-256 that stands for every byte of the cache."""
        self.grid: Grid = spec.grid
        self.dim = spec.dim
        self.image_size: Size = spec.image_size
        self.views = spec.views
        self.fingerprint: dict[str, Any] = spec.to_dict()["teacher"]
        self.num_samples = sum(self.shard_sizes)
        self._ends: list[int] = np.cumsum(table.sizes).tolist()
        self.codec = _load_codec(path, spec)
        self._index = lru_cache(maxsize=OPEN_SHARDS)(self._load_index)
        self._file = lru_cache(maxsize=OPEN_SHARDS)(self._open)

    @property
    def remote(self) -> bool:
        """Whether it is behind a URL: files come here as they are read."""
        return self._mirror is not None

    @classmethod
    def open(cls, path: str | Path, *, home: Path = MIRRORS, limit: int = MIRROR_LIMIT) -> Cache:
        """Open a complete cache; one behind a URL through a mirror in ``home`` of ``limit`` bytes.

        CacheError if there is none or it is unfinished, DamageError if it is damaged.
        """
        source = str(path)
        mirror = Mirror(source, home, limit) if is_url(path) else None
        path = Path(path) if mirror is None else mirror.folder
        spec = read_spec(path)
        if not (is_complete(path) if mirror is None else mirror.has(MANIFEST)):
            raise _incomplete(path, spec)
        table = read_shards(path, spec)
        if table.spec != spec.hash() or _sha256((path / SPEC).read_bytes()) != table.files.get(SPEC):
            raise _damage(path, SPEC, "it does not match the manifest")
        for name in (PLAN, MANIFEST) if mirror is None else ():
            if not _is_whole(path / name, table.files.get(name)):
                raise _damage(path, name, "it does not match the manifest")
        cache = cls(path, spec, table, mirror)
        cache._source, cache._options = source, {"home": home, "limit": limit}
        return cache

    def __len__(self) -> int:
        """Samples of all views."""
        return self.views * self.num_samples

    def __getitem__(self, place: int) -> Item:
        """Sample ``place`` of all views, the first view's first; DamageError as :meth:`read`.

        CacheError if the cache holds no pixels.
        """
        self.require_pixels("take them from that cache, whose samples have the same places")
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of {len(self)}")
        view, index = divmod(place % len(self), self.num_samples)
        sample = self.read(view, index)
        pixels = torch.from_numpy(decode(sample.jpeg))
        return Item(sample.sid, pixels, torch.from_numpy(sample.cls), torch.from_numpy(sample.patches))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the cache anew: a DataLoader's workers, however they are started."""
        return partial(Cache.open, **self._options), (self._source,)

    def require_pixels(self, step: str) -> None:
        """CacheError if another cache stores the pixels; ``step`` is what to do then."""
        if self.spec.pixels_of is not None:
            raise self.without_pixels(step)

    def without_pixels(self, step: str) -> CacheError:
        """The error of a cache whose pixels another cache stores."""
        return CacheError(
            f"{self._source} holds no pixels: they are those of the cache with manifest sha256 "
            f"{self.spec.pixels_of} ({self.spec.pixels.get('path')})",
            step,
        )

    def read(self, view: int, index: int) -> Sample:
        """Sample ``index`` of view ``view`` modulo the cache's views; DamageError names what is damaged."""
        cls = np.empty(self.dim, np.float16)
        patches = np.empty((self.grid[0] * self.grid[1], self.dim), np.float16)
        image = self.read_into(view, index, cls, patches)
        return Sample(image.sid, bytes(image.jpeg), cls, patches)

    def read_into(self, view: int, index: int, cls: Float16, patches: Float16) -> SampleImage:
        """The same, with the tokens written to ``cls`` (C,) and ``patches`` (N, C), both contiguous."""
        assert patches.flags.c_contiguous, "a row of a batch"
        view, shard, members = self._locate(view, index)
        verbatim = self.codec.verbatim
        row = patches.reshape(-1).view(np.uint8).data if verbatim else _NO_ROW
        contents = self._contents(view, shard, members, row)
        try:
            cls[:] = npy_view(contents["cls.npy"])
            if verbatim:
                require_npy(contents["patch.npy"], patches)
            else:
                arrays = {name: npy_view(data) for name, data in contents.items() if name.endswith(".npy")}
                patches[:] = self.codec.decode(arrays)
            return SampleImage(members[0].sid, self._jpeg(contents))
        except (KeyError, ValueError) as error:
            raise self._shard_damage(view, shard, f"{members[0].sid}: {error}") from None

    def read_encoded(self, view: int, index: int, cls: Float16) -> EncodedSample:
        """As :meth:`read_into`, with the patch tokens as they are stored."""
        view, shard, members = self._locate(view, index)
        contents = self._contents(view, shard, members)
        try:
            arrays = {name: npy_view(data) for name, data in contents.items() if name.endswith(".npy")}
            cls[:] = arrays.pop("cls.npy")
            return EncodedSample(SampleImage(members[0].sid, self._jpeg(contents)), self.codec, arrays)
        except (KeyError, ValueError) as error:
            raise self._shard_damage(view, shard, f"{members[0].sid}: {error}") from None

    def read_members(self, view: int, index: int, names: Collection[str]) -> dict[str, memoryview]:
        """The members called ``names`` (``jpg``, ``label.png``) of a sample, as they are stored."""
        view, shard, members = self._locate(view, index)
        matches = [member for member in members if member.member in names]
        return self._contents(view, shard, matches)

    def bytes_of(self, view: int, index: int) -> int:
        """The bytes that reading a sample fetches from its tar."""
        view, shard, members = self._locate(view, index)
        return self._index(view, shard).follows(members[-1]) - (members[0].offset - BLOCK)

    def sid(self, index: int) -> str:
        """The name of a sample."""
        return self._locate(0, index)[2][0].sid

    def _locate(self, view: int, index: int) -> tuple[int, int, list[Member]]:
        """The view, the shard and the members of a sample."""
        view %= self.views
        shard = bisect_right(self._ends, index)
        samples = self._index(view, shard).samples
        return view, shard, samples[index - self._ends[shard] + self.shard_sizes[shard]]

    def sids(self, shard: int) -> list[str]:
        """Names of the samples of one shard, in order."""
        return [members[0].sid for members in self._index(0, shard).samples]

    def _contents(
        self, view: int, shard: int, members: list[Member], row: memoryview = _NO_ROW
    ) -> dict[str, memoryview]:
        """The checked contents of one sample, read at once.

        If ``row`` is not empty the data of ``patch.npy`` go there, and only its header is returned.
        """
        last = members[-1]
        start, stop = members[0].offset - BLOCK, self._index(view, shard).follows(last)
        row_start = row_stop = stop
        if len(row):
            patch = next(member for member in members if member.member == "patch.npy")
            row_stop = patch.offset + patch.bytes
            row_start = row_stop - len(row)
        before = memoryview(bytearray(row_start - start))
        after = memoryview(bytearray(stop - row_stop))
        try:
            read_end = start + self._file(view, shard).read_into([before, row, after], start)
        except OSError as error:
            raise self._shard_damage(view, shard, error.strerror or str(error)) from None

        def part(first: int, past: int) -> memoryview:
            """Bytes [first, past) of the tar, without those of the row."""
            if first < row_start:
                return before[first - start : min(past, row_start) - start]
            return after[first - row_stop : past - row_stop]

        contents = {m.member: part(m.offset, m.offset + m.bytes) for m in members}
        end = next_header(last.offset + last.bytes)
        crc = zlib_ng.crc32(after[: end - row_stop], zlib_ng.crc32(row, zlib_ng.crc32(before)))
        if crc != last.sample_crc32:  # damaged, or not a whole sample: say which member
            for member in members:
                problem = _problem(member, part, row, read_end)
                if problem:
                    raise self._shard_damage(view, shard, f"{member.sid}.{member.member}: {problem}")
        if read_end < stop or not _zero(after[end - row_stop :]):
            raise self._shard_damage(view, shard, "its end is cut short or not zero")
        return contents

    def _jpeg(self, contents: dict[str, memoryview]) -> memoryview:
        return contents["jpg"] if self.spec.pixels_of is None else memoryview(b"")

    def _shard_damage(self, view: int, shard: int, why: str) -> DamageError:
        return self._damaged_file(tar_path(self.path, view, shard), why)

    def _open(self, view: int, shard: int) -> _File:
        path = tar_path(self.path, view, shard)
        for _ in range(3):  # another thread may drop the file between fetching and opening
            self._fetch(path)
            try:
                return _File(path)
            except FileNotFoundError:
                if self._mirror is None:
                    raise
        return _File(path)

    def _fetch(self, path: Path) -> None:
        """Download a file of a remote cache, unless it is here."""
        if self._mirror is not None:
            self._mirror.fetch(path.relative_to(self.path).as_posix())

    def read_index(self, view: int, shard: int) -> bytes:
        """The bytes of a shard's index; DamageError if they are not those that were written."""
        path = index_path(self.path, view, shard)
        try:
            self._fetch(path)
            data = path.read_bytes()
        except OSError as error:
            raise self._damaged_file(path, error.strerror or str(error)) from None
        if _sha256(data) != self._table.index(view, shard):
            raise self._damaged_file(path, "it does not match the manifest")
        return data

    def sound_file(self, name: str) -> Path:
        """The path of the plan or the manifest, whose bytes are those that were written; DamageError."""
        path = self.path / name
        try:
            self._fetch(path)
            whole = holds(path, self._table.files.get(name))
        except OSError as error:
            raise self._damaged_file(path, error.strerror or str(error)) from None
        if not whole:
            raise self._damaged_file(
                path, "it does not match the manifest" if path.exists() else "it is missing"
            )
        return path

    def _damaged_file(self, path: Path, why: str) -> DamageError:
        return _damage(self.path, path.relative_to(self.path).as_posix(), why, self.spec.images_flag)

    def _load_index(self, view: int, shard: int) -> _Index:
        """The index of a shard, checked against the manifest."""
        index = parse_index(self.read_index(view, shard))
        last = index.members[-1].offset + index.members[-1].bytes if index.members else 0
        samples = [list(group) for _, group in groupby(index.members, key=lambda member: member.sid)]
        return _Index(samples, last, index.info.tar_bytes)


class Caches:
    """Several caches of one teacher, one after the other."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        first = caches[0]
        for other in caches[1:]:
            refuse_unlike(first, other)
        self.caches = tuple(caches)
        self.grid, self.dim, self.image_size = first.grid, first.dim, first.image_size
        self.fingerprint = first.fingerprint
        self.views = max(cache.views for cache in caches)
        self.shard_sizes = tuple(size for cache in caches for size in cache.shard_sizes)
        self.num_samples = sum(self.shard_sizes)
        self._ends = list(accumulate(cache.num_samples for cache in caches))

    def read(self, view: int, index: int) -> Sample:
        """Sample ``index`` of all caches; a cache takes ``view`` modulo its number of views."""
        cache, index = self.find(index)
        return cache.read(view, index)

    def find(self, index: int) -> tuple[Cache, int]:
        """The cache that holds sample ``index`` of all, and the sample's index in that cache."""
        number = bisect_right(self._ends, index)
        cache = self.caches[number]
        return cache, index - self._ends[number] + cache.num_samples


def open_caches(paths: Sequence[str | Path], *, home: Path = MIRRORS, limit: int = MIRROR_LIMIT) -> Caches:
    """Open caches of the same teacher, grid and image size; CacheError names two that differ."""
    if not paths:
        raise CacheError("no cache was given", "give --cache CACHE")
    return Caches([Cache.open(path, home=home, limit=limit) for path in paths])


def _load_codec(path: Path, spec: Spec) -> Codec:
    try:
        data = (path / STATE).read_bytes() if spec.codec_state else None
        return load_codec(spec.codec, data, spec.codec_state)
    except (OSError, CacheError) as error:
        raise _damage(path, STATE, str(error)) from None


def refuse_unlike(one: Cache, other: Cache) -> None:
    """CacheError unless both hold tokens of one teacher, grid and image size."""
    keys = ("teacher", "dim", "grid", "image_size")
    mine, theirs = ({key: cache.spec.to_dict()[key] for key in keys} for cache in (one, other))
    if changes := differences(mine, theirs):
        lines = [f"{key}: {before} and {after}" for key, before, after in changes]
        raise CacheError(
            f"the caches {one.path} and {other.path} cannot be used together:\n    " + "\n    ".join(lines),
            "make both with the same teacher, --image-size and --patch-size",
        )


def _incomplete(path: Path, spec: Spec) -> CacheError:
    missing = sum(not index_path(path, view, shard).exists() for view, shard in spec.view_shards)
    return CacheError(
        f"the cache {path} is unfinished: {missing} of {len(spec.view_shards)} shards are missing",
        "run the same cache-teacher command again: it goes on where it stopped",
    )


def _damage(path: Path, what: str, why: str, images: str = "FOLDER") -> DamageError:
    return DamageError(
        f"{path}/{what}: {why}",
        f"list all with: {shell('gkd-scale', 'verify', path)}; then mend it with: "
        + shell("gkd-scale", "repair", path, "--images", images),
    )


def _problem(member: Member, part: Callable[[int, int], memoryview], row: memoryview, read_end: int) -> str:
    """What is wrong with a member of a tar that was read up to byte ``read_end``; '' if nothing."""
    name, end = f"{member.sid}.{member.member}", member.offset + member.bytes
    if next_header(end) > read_end:
        return "the tar is cut short"
    if part(member.offset - BLOCK, member.offset) != tar_header(name, member.bytes):
        return "its tar header is not the one written"
    content = part(member.offset, end)
    crc = zlib_ng.crc32(content)
    if len(content) < member.bytes:  # of patch.npy the header: the rest is in the row
        crc = zlib_ng.crc32(row, crc)
    if crc != member.crc32:
        return "CRC32 mismatch"
    return "" if _zero(part(end, next_header(end))) else "the padding after it is not zero"


def _zero(data: memoryview) -> bool:
    return not bytes(data).strip(b"\0")


def _is_whole(path: Path, digest: str | None) -> bool:
    """Whether a file is whole; a large one, which verify reads, only has to exist."""
    return path.exists() and (path.stat().st_size > _LARGE or holds(path, digest))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
