"""Caches of several teachers over the same views, joined sample by sample.

Sample n of one is sample n of all: the same image, the same crop, the same JPEG bytes. Small files show
it: settings in the specs, names in the manifests, CRC32s of the JPEGs in the indexes of the shards; or the
spec of a cache without pixels, which names the manifest of the one that stores them. The error names the
first sample that differs. It comes before the first step. For caches behind a URL, whose indexes arrive with
their shards, it comes before the first sample of a shard is used.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gkd_scale.cache.manifest import MANIFEST
from gkd_scale.cache.reader import MIRROR_LIMIT, MIRRORS, Cache, Caches
from gkd_scale.cache.rows import GROUP, Rows
from gkd_scale.cache.spec import differences
from gkd_scale.errors import CacheError
from gkd_scale.prefetch import prefetch
from gkd_scale.types import Grid, Size

SETTINGS = ("image_size", "views", "view", "seed")
"""Keys in which the specs of two caches must agree, beside names and pixels."""


class _CacheSet(NamedTuple):
    """The caches of one place, one of each teacher: the first that stores pixels, and the others."""

    pixels: Cache
    others: list[Cache]


class Joined:
    """``teachers``: the caches of each, all with the same samples, in the order of the first's.

    ``grid`` and ``dim`` are the first teacher's. Raises CacheError for views of other settings, and for
    tokens whose pixels no cache of the same place stores.
    """

    def __init__(self, teachers: Sequence[Caches]) -> None:
        first = teachers[0]
        self.teachers = tuple(teachers)
        self.grid: Grid = first.grid
        self.dim = first.dim
        self.image_size: Size = first.image_size
        self.views, self.shard_sizes, self.num_samples = first.views, first.shard_sizes, first.num_samples
        self._places = list(_places(teachers))
        self._ends = list(accumulate(first.shard_sizes))
        self._starts = list(accumulate((place.pixels.num_samples for place in self._places), initial=0))
        sizes = [len(place.pixels.shard_sizes) for place in self._places]
        self._shards = [(place, shard) for place, count in enumerate(sizes) for shard in range(count)]
        self._agreed: set[tuple[int, int]] = set()

    def check(self, workers: int) -> None:
        """Raise CacheError for the first sample that differs; of remote caches by its name alone.

        The shards are compared by ``workers`` threads.
        """
        for pixels, others in self._places:
            for other in others:
                _refuse_other_names(pixels, other)
        works = [
            (pixels, [other for other in others if not other.remote], view, shard)
            for pixels, others in self._places
            if not pixels.remote
            for view in range(pixels.views)
            for shard in range(len(pixels.shard_sizes))
        ]
        for _ in prefetch(lambda work: _refuse_other_pixels(*work), works, workers, depth=4 * workers):
            pass

    def check_shard_of(self, view: int, index: int) -> None:
        """Raise CacheError if the shard of sample ``index`` holds other pixels for another teacher."""
        number = bisect_right(self._ends, index)
        if (view, number) not in self._agreed:
            place, shard = self._shards[number]
            pixels, others = self._places[place]
            _refuse_other_pixels(pixels, others, view % pixels.views, shard)
            self._agreed.add((view, number))

    def jpeg(self, view: int, index: int) -> memoryview:
        """The pixels of a sample, from the cache that stores them; DamageError if they are damaged."""
        place, _ = self._shards[bisect_right(self._ends, index)]
        return self._places[place].pixels.read_members(view, index - self._starts[place], ("jpg",))["jpg"]


def open_joined(
    paths: Sequence[str | Path], *, home: Path = MIRRORS, limit: int = MIRROR_LIMIT
) -> Caches | Joined:
    """Open caches: those of one teacher are one after the other, those of several are joined.

    The first cache of one teacher is joined with the first of another, and so on. CacheError names two that
    do not fit together.
    """
    if not paths:
        raise CacheError("no cache was given", "give --cache CACHE")
    groups: list[list[Cache]] = []
    for path in paths:
        cache = Cache.open(path, home=home, limit=limit)
        for group in groups:
            if group[0].fingerprint == cache.fingerprint:
                group.append(cache)
                break
        else:
            groups.append([cache])
    teachers = [Caches(group) for group in groups]
    return teachers[0] if len(teachers) == 1 else Joined(teachers)


def _places(teachers: Sequence[Caches]) -> Iterator[_CacheSet]:
    """The caches that belong together: the first of each teacher, the second of each, and so on."""
    counts = [len(teacher.caches) for teacher in teachers]
    if len(set(counts)) > 1:
        parts = [
            f"{count} of {group.fingerprint['model']}" for count, group in zip(counts, teachers, strict=True)
        ]
        raise CacheError(
            f"caches of several teachers are joined one to one, and there are {' and '.join(parts)}",
            "give as many --cache of each teacher, in the same order",
        )
    for caches in zip(*(teacher.caches for teacher in teachers), strict=True):
        stores = [cache for cache in caches if cache.spec.pixels_of is None]
        manifests = {cache.manifest for cache in stores}
        for cache in caches:
            if cache.spec.pixels_of is not None and cache.spec.pixels_of not in manifests:
                raise cache.without_pixels("give that cache too, with another --cache")
        place = _CacheSet(stores[0], [cache for cache in caches if cache is not stores[0]])
        for other in place.others:
            _refuse_other_settings(place.pixels, other)
        yield place


def _refuse_other_settings(pixels: Cache, other: Cache) -> None:
    mine, theirs = ({key: cache.spec.to_dict()[key] for key in SETTINGS} for cache in (pixels, other))
    if changes := differences(mine, theirs):
        what = "; ".join(f"{key} {before} and {after}" for key, before, after in changes)
        raise _other_views(pixels, other, what)


def _refuse_other_names(pixels: Cache, other: Cache) -> None:
    all_rows = [Rows(cache.sound_file(MANIFEST), ["sid", "status"]) for cache in (pixels, other)]
    for start in range(0, max(map(len, all_rows)), GROUP):
        mine, theirs = (rows.read(start, start + GROUP) for rows in all_rows)
        first = first_difference(mine, theirs)
        if first is not None:
            ways = {"sid": "is not in the same place of both", "status": "could be read for one of them only"}
            what = f"sample {_name(mine, theirs, first.row)} {ways[first.column]}"
            raise _other_views(pixels, other, what)
    if pixels.shard_sizes != other.shard_sizes:
        raise _other_views(pixels, other, "they cut the images into other shards (--samples-per-shard)")


def _refuse_other_pixels(pixels: Cache, others: Sequence[Cache], view: int, shard: int) -> None:
    """CacheError if other caches hold other JPEGs in a shard, by their sizes and CRC32s.

    A cache without pixels names the manifest of the one that stores them.
    """
    for other in others:
        if other.spec.pixels_of is None:
            mine, theirs = (_jpegs(cache, view, shard) for cache in (pixels, other))
            first = first_difference(mine, theirs)
            if first is not None:
                what = "is not in the same place of both" if first.column == "sid" else "has other pixels"
                name = _name(mine, theirs, first.row)
                raise _other_views(pixels, other, f"sample {name} {what} in view {view}")


def _jpegs(cache: Cache, view: int, shard: int) -> pa.Table:
    """Name, size and CRC32 of each JPEG of a shard, in the order of its samples."""
    data = io.BytesIO(cache.read_index(view, shard))
    table = pq.read_table(data, columns=["sid", "member", "bytes", "crc32"], use_threads=False)
    return table.filter(pc.equal(table["member"], "jpg")).drop_columns(["member"])


class FirstDifference(NamedTuple):
    """Where two tables differ."""

    row: int
    column: str


def first_difference(one: pa.Table, other: pa.Table) -> FirstDifference | None:
    """The first row in which two tables of the same columns differ, and the first column that does there.

    A row that only one of them has differs in the first column. No value is null.
    """
    rows = min(len(one), len(other))
    candidates = []
    for column in one.column_names:
        same = pc.equal(*(table[column].slice(0, rows).combine_chunks() for table in (one, other)))
        row = pc.index(same, pa.scalar(False)).as_py()
        if row >= 0:
            candidates.append(FirstDifference(row, column))
    if not candidates and len(one) != len(other):
        candidates.append(FirstDifference(rows, one.column_names[0]))
    return min(candidates, key=lambda difference: difference.row, default=None)


def _name(one: pa.Table, other: pa.Table, row: int) -> str:
    """The name of the sample of a row that at least one table has."""
    return str((one if row < len(one) else other)["sid"][row].as_py())


def _other_views(pixels: Cache, other: Cache, what: str) -> CacheError:
    one, two = (cache.fingerprint for cache in (pixels, other))
    step = "make both from the same images with the same --image-size, --views, --seed and view options"
    if one["model"] == two["model"]:
        keys = ", ".join(key for key, *_ in differences(one, two))
        step = f"to use them one after the other, make both with one teacher: it differs in {keys}"
    return CacheError(
        f"the caches {pixels.path} ({one['model']}) and {other.path} ({two['model']}) are of two teachers "
        f"and do not show them the same views: {what}",
        step,
    )
