from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache, Caches, open_caches
from gkd_scale.cache.shard import npy_view, parse_index
from gkd_scale.errors import CacheError, DamageError, GkdError

from .support import TinyTeacher, config, write_images

Whole = tuple[Path, BuildReport]


def test_the_surface(whole: Whole) -> None:
    cache = Cache.open(whole[0])
    assert (cache.grid, cache.dim, cache.image_size, cache.views) == ((4, 6), 12, (32, 48), 2)
    assert cache.num_samples == 10 == sum(cache.shard_sizes) and len(cache.shard_sizes) == 3
    assert cache.fingerprint == TinyTeacher().fingerprint()
    sids = [cache.read(0, i).sid for i in range(10)]
    assert len(set(sids)) == 10
    assert [sid for shard in range(3) for sid in cache.sids(shard)] == sids
    sample = cache.read(1, 9)
    assert sample.cls.shape == (12,) and sample.cls.dtype == np.float16
    assert sample.patches.shape == (24, 12) and sample.patches.dtype == np.float16


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_reading_into_a_batch_touches_its_row_alone(codec: str, images: Path, tmp_path: Path) -> None:
    build(config(images, tmp_path, codec=codec, views=1), TinyTeacher(), quiet=True)
    cache = Cache.open(tmp_path)
    cls, patches = np.full((3, 12), 7, np.float16), np.full((3, 24, 12), 7, np.float16)
    for index in range(10):
        record, sample = cache.read_into(0, index, cls[1], patches[1]), cache.read(0, index)
        assert (record.sid, bytes(record.jpeg)) == (sample.sid, sample.jpeg)
        members = cache.read_members(0, index, ("cls.npy", "patch.npy", "patch_scale.npy"))
        arrays = {name: npy_view(data) for name, data in members.items()}
        np.testing.assert_array_equal(cls[1], arrays["cls.npy"])
        np.testing.assert_array_equal(patches[1], cache.codec.decode(arrays))
    assert (cls[[0, 2]] == 7).all() and (patches[[0, 2]] == 7).all()


def test_views_wrap_around(whole: Whole) -> None:
    cache = Cache.open(whole[0])
    assert cache.read(5, 2).jpeg == cache.read(1, 2).jpeg != cache.read(4, 2).jpeg


def test_threads_and_forks_read_the_same(whole: Whole) -> None:
    cache = Cache.open(whole[0])
    expected = [cache.read(0, i).patches.sum() for i in range(10)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: cache.read(0, i % 10).patches.sum(), range(200))) == expected * 20
    child = os.fork()
    if child == 0:
        os._exit(0 if [cache.read(0, i).patches.sum() for i in range(10)] == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_files_are_closed_only_when_nobody_reads_them(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one open shard, four threads on six: each read opens a file and evicts another's."""
    monkeypatch.setattr("gkd_scale.cache.reader.OPEN_SHARDS", 1)
    expected = [Cache.open(whole[0]).read(i // 10, i % 10).patches.sum() for i in range(20)]
    cache = Cache.open(whole[0])
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda i: cache.read(i // 10 % 2, i % 10).patches.sum(), range(400)))
    assert sums == expected * 20
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 1


def test_an_unfinished_cache_is_refused_with_the_number_of_missing_shards(copy: Any) -> None:
    out = copy()
    (out / "manifest.parquet").unlink()
    (out / "v01/shard-000001.parquet").unlink()
    with pytest.raises(CacheError, match=r"1 of 6 shards are missing\n.*same cache-teacher command"):
        Cache.open(out)


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="does not exist"):
        Cache.open(tmp_path / "nowhere")
    with pytest.raises(CacheError, match="is not a teacher cache"):
        Cache.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="is a file"):
        Cache.open(tmp_path / "file")
    with pytest.raises(CacheError, match="no cache was given"):
        open_caches([])


@pytest.mark.parametrize("name", ["v00/shard-000001.tar", "v00/shard-000001.parquet"])
def test_a_missing_file_is_damage(copy: Any, name: str) -> None:
    out = copy()
    (out / name).unlink()
    cache = Cache.open(out)
    cache.read(0, 0)
    with pytest.raises(DamageError, match=rf"{name}: No such file.*\n.*gkd-scale verify"):
        cache.read(0, cache.shard_sizes[0])


def test_a_flipped_bit_names_file_and_member(copy: Any) -> None:
    out = copy()
    tar = out / "v00/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"\x93NUMPY") + 130] ^= 4
    tar.write_bytes(data)
    with pytest.raises(DamageError, match=r"v00/shard-000000.tar: [0-9a-f]{16}\.cls\.npy: CRC32 mismatch"):
        Cache.open(out).read(0, 0)
    Cache.open(out).read(1, 0)


def test_an_epoch_meets_a_flipped_bit_in_any_byte_of_the_cache(copy: Any) -> None:
    out = copy()
    tar = out / "v01/shard-000001.tar"
    members = parse_index(tar.with_suffix(".parquet").read_bytes()).members
    inside = {"content": members[3].offset, "header": members[3].offset - 512}
    inside |= {"first header": 0, "padding": members[3].offset + members[3].bytes, "end": -1}
    inside |= {"after the last": members[-1].offset + members[-1].bytes}
    assert members[3].bytes % 512 and members[-1].bytes % 512, "both are padded"
    places = [(tar, at) for at in inside.values()]
    for path in sorted(path for path in out.rglob("*") if path.is_file() and path.stat().st_size):
        places += [(path, at) for at in (0, path.stat().st_size // 2, -1)]
    for path, at in places:
        data = path.read_bytes()
        content = bytearray(data)
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(GkdError, match=path.name):
            _read_all(out)
        path.write_bytes(data)
    _read_all(out)


def _read_all(path: Path) -> None:
    cache = Cache.open(path)
    for view in range(cache.views):
        for index in range(cache.num_samples):
            cache.read(view, index)


def test_of_a_tar_cut_short_the_whole_samples_are_still_read(copy: Any) -> None:
    out = copy()
    tar = out / "v00/shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    cache = Cache.open(out)
    last = cache.shard_sizes[0] - 1
    for index in range(last):
        cache.read(0, index)
    with pytest.raises(DamageError, match="cut short"):
        cache.read(0, last)


def test_caches_in_a_row(whole: Whole, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5, seed=1)
    other = tmp_path / "cache"
    build(config(tmp_path / "images", other, views=1), TinyTeacher(), quiet=True)
    both = open_caches([whole[0], other])
    one, two = Cache.open(whole[0]), Cache.open(other)
    assert both.num_samples == 15 and both.shard_sizes == one.shard_sizes + two.shard_sizes
    assert both.read(1, 9).jpeg == one.read(1, 9).jpeg
    assert both.read(1, 10).jpeg == two.read(0, 0).jpeg
    source = CachedSource(both, global_batch=15, micro_batch=15)
    (batch,) = source.batches(0, 1)
    assert len(set(zip(batch.sids, batch.positions, strict=True))) == 15


def test_caches_of_other_teachers_are_refused(whole: Whole, images: Path, tmp_path: Path) -> None:
    build(config(images, tmp_path / "other", views=1), TinyTeacher(gain=0.5), quiet=True)
    with pytest.raises(CacheError) as error:
        Caches([Cache.open(whole[0]), Cache.open(tmp_path / "other")])
    assert "teacher.gain: 1.0 and 0.5" in str(error.value) and str(tmp_path / "other") in str(error.value)
