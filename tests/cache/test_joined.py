"""Caches of several teachers over the same views: joined sample by sample, or refused at the first one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.encoded import EncodedBatch
from gkd_scale.cache.joined import FirstDifference, Joined, first_difference, open_joined
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import Caches
from gkd_scale.errors import CacheError
from gkd_scale.types import Batch

from .support import TinyTeacher, config, write_images

Make = Callable[..., Path]
ORDER: dict[str, Any] = {"global_batch": 6, "micro_batch": 3, "accumulation": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, 9)
    return folder


@pytest.fixture(scope="module")
def make(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a cache of ``pictures`` by a teacher of some width."""

    def write(dim: int, images: Path = pictures, **changes: Any) -> Path:
        out = tmp_path_factory.mktemp("made") / f"of{dim}"
        build(config(images, out, **changes), TinyTeacher(dim=dim, gain=dim), quiet=True)
        return out

    return write


@pytest.fixture(scope="module")
def one(make: Make) -> Path:
    return make(12)


@pytest.fixture(scope="module")
def other(make: Make) -> Path:
    return make(8, codec="int8")


def source(*paths: Path, **values: Any) -> CachedSource:
    caches = open_joined(paths)
    if isinstance(caches, Joined):
        caches.check(2)
    return CachedSource(caches, **{**ORDER, **values})


def alike(both: Batch, alone: Batch, teacher: int) -> bool:
    same = torch.equal(both.pixels, alone.pixels) and both.sids == alone.sids
    return same and all(map(torch.equal, both.teachers[teacher], alone.teacher))


def test_joined_batches_are_those_of_each_cache_alone(one: Path, other: Path) -> None:
    """Tokens that stay encoded are decoded on the device, for each teacher by itself."""
    for seed, encoded in ((0, False), (1, True)):
        runs = [
            list(source(*paths, seed=seed, encoded=encoded).batches(0, 4))
            for paths in ((one, other), (one,), (other,))
        ]
        for both, *alone in zip(*runs, strict=True):
            assert isinstance(both, EncodedBatch) == encoded and len(both.teachers) == 2
            plain = [each.decode() if isinstance(each, EncodedBatch) else each for each in (both, *alone)]
            assert all(alike(plain[0], each, number) for number, each in enumerate(plain[1:]))


def test_pixels_come_from_the_cache_that_stores_them(one: Path, make: Make, tmp_path: Path) -> None:
    """Whichever is given first; a teacher of other pixels is refused."""

    def blind_of(dim: int) -> Path:
        out = tmp_path / f"blind{dim}"
        build(CacheTeacherConfig(f"cache:{one}", out), TinyTeacher(dim=dim, gain=dim), quiet=True)
        return out

    blind = blind_of(8)
    for paths in ((one, blind), (blind, one)):
        for both, alone in zip(source(*paths).batches(0, 4), source(one).batches(0, 4), strict=True):
            assert alike(both, alone, paths.index(one))
    caches = open_joined([one, blind])
    for both, alone in zip(
        CachedSource(caches, silent=[0], **ORDER).batches(0, 4), source(one).batches(0, 4), strict=True
    ):
        assert torch.equal(both.pixels, alone.pixels) and both.sids == alone.sids
        assert len(both.teachers) == 1 and both.teacher.cls.shape == (3, 8)
    again = make(12, codec="int8")
    for paths in ((blind, again), (blind, blind_of(6))):
        with pytest.raises(CacheError, match="holds no pixels"):
            source(*paths)


def test_each_teacher_is_spread_by_itself(one: Path, other: Path) -> None:
    both, alone = source(one, other), source(other)
    for mine, theirs in zip(both.spread(5, 1), alone.spread(5), strict=True):
        assert all(map(torch.equal, mine, theirs))


def test_caches_of_one_teacher_follow_each_other_and_are_joined_with_those_of_another(
    one: Path, other: Path, make: Make, tmp_path: Path
) -> None:
    write_images(tmp_path, 5, seed=1)
    more = [make(dim, tmp_path) for dim in (12, 8)]
    assert isinstance(open_joined([one, more[0]]), Caches)
    both = open_joined([one, other, more[1], more[0]])
    assert isinstance(both, Joined) and both.num_samples == 14
    assert [caches.dim for caches in both.teachers] == [12, 8]
    both.check(1)
    with pytest.raises(CacheError, match=r"there are 2 of tiny and 1 of tiny"):
        open_joined([one, other, more[0]])


def test_another_image_is_refused_by_its_name(one: Path, make: Make, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "changed")
    image = tmp_path / "changed/b/004.PNG"
    shutil.copy(tmp_path / "changed/b/001.PNG", image)
    sid = open_joined([one]).caches[0].sid  # type: ignore[union-attr]
    names = {sid(index) for index in range(9)}
    with pytest.raises(CacheError, match=r"sample ([0-9a-f]{16}) has other pixels in view 0") as error:
        source(one, make(8, tmp_path / "changed"))
    match = re.search(r"sample (\w+)", error.value.message)
    assert match is not None and match[1] in names


def test_an_image_more_is_refused_by_its_name(one: Path, make: Make, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "more")
    shutil.copy(pictures / "b/001.PNG", tmp_path / "more/zzz.png")
    with pytest.raises(CacheError, match=r"sample [0-9a-f]{16} is not in the same place of both"):
        source(one, make(8, tmp_path / "more"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"seed": 1}, "seed 0 and 1"), ({"views": 1}, "views 2 and 1"), ({"samples_per_shard": 3}, "shards")],
)
def test_other_views_are_refused(one: Path, make: Make, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(CacheError, match=what) as error:
        source(one, make(8, **changes))
    assert "one after the other" in error.value.hint, "both teachers are called tiny"


def test_a_remote_cache_is_compared_shard_by_shard(
    one: Path, other: Path, make: Make, pictures: Path, tmp_path: Path
) -> None:
    """Of a cache behind a URL the indexes are not here yet."""
    shutil.copytree(pictures, tmp_path / "changed")
    shutil.copy(tmp_path / "changed/b/001.PNG", tmp_path / "changed/b/004.PNG")
    third = make(8, tmp_path / "changed")
    for path, fits in ((other, True), (third, False)):
        caches = open_joined([one, path.as_uri()], home=tmp_path / f"mirror-{fits}")
        assert isinstance(caches, Joined)
        caches.check(1)
        batches = CachedSource(caches, global_batch=9, micro_batch=9).batches(0, 1)
        if fits:
            assert len(next(batches).teachers) == 2
        else:
            with pytest.raises(CacheError, match="has other pixels in view 0"):
                next(batches)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=5), st.data())
def test_the_first_difference_is_the_first(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=5))
    tables = [
        pa.table({name: pa.array([row[at] for row in each], pa.int64()) for at, name in enumerate("ab")})
        for each in (rows, others)
    ]
    expected = None
    for row in range(max(len(rows), len(others))):
        mine, theirs = (each[row] if row < len(each) else None for each in (rows, others))
        if mine != theirs:
            expected = FirstDifference(row, "b" if mine and theirs and mine[0] == theirs[0] else "a")
            break
    assert first_difference(*tables) == expected
