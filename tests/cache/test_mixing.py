"""Shards are cut from a permutation of the images, so batches hold most classes of sorted images."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.cache import build as build_module
from gkd_scale.cache import folder, older
from gkd_scale.cache.build import build
from gkd_scale.cache.inspect import describe
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.order import Order
from gkd_scale.cache.plan import ImagePlan, make_plan, write_plan
from gkd_scale.cache.reader import Cache, open_caches
from gkd_scale.cache.repair import refuse_other_source
from gkd_scale.cache.spec import FORMAT, read_spec
from gkd_scale.cache.verify import verify
from gkd_scale.errors import CacheError

from .support import TinyTeacher, config, tree, write_images


class ByClass:
    """A source with a folder a class."""

    def __init__(self, classes: int, images: int) -> None:
        self.paths = [f"{label:04d}/{image:05d}.jpg" for label in range(classes) for image in range(images)]

    def entries(self) -> list[tuple[str, int]]:
        return [(path, 1) for path in self.paths]

    def read(self, name: str) -> bytes:
        raise OSError(name)


def by_class(
    classes: int, images: int, samples_per_shard: int, seed: int = 0, version: int = FORMAT
) -> ImagePlan:
    """The plan of a folder with a subfolder a class."""
    source = ByClass(classes, images)
    return make_plan("images", samples_per_shard, source=source, seed=seed, version=version)


def classes_a_batch(plan: ImagePlan, batch: int, batches: Iterable[int]) -> float:
    """The mean number of distinct classes in a batch."""
    shards = [plan.shard(shard) for shard in range(plan.shards)]
    labels = [entry.path[:4] for shard in shards for entry in shard]
    order = Order([len(shard) for shard in shards], seed=0)
    return float(
        np.mean(
            [len({labels[order.position(number * batch + i)[1]] for i in range(batch)}) for number in batches]
        )
    )


@pytest.mark.parametrize(
    ("classes", "images", "samples_per_shard", "batch"), [(32, 32, 32, 64), (1000, 128, 512, 512)]
)
def test_a_batch_of_images_sorted_by_class_holds_most_classes(
    classes: int, images: int, samples_per_shard: int, batch: int
) -> None:
    rng = np.random.default_rng(0)
    perfect = np.mean(
        [len(set(rng.choice(classes * images, batch, replace=False) // images)) for _ in range(50)]
    )
    batches = range(0, classes * images // batch, max(1, classes * images // batch // 32))
    first, second, new = (
        classes_a_batch(by_class(classes, images, samples_per_shard, version=version), batch, batches)
        for version in (1, 2, 3)
    )
    assert new >= 0.85 * perfect, f"{new:.1f} of {perfect:.1f}"
    assert second >= 0.85 * perfect, f"{second:.1f} of {perfect:.1f}"
    assert first < 0.3 * perfect, "the test tells the formats apart"


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_each_image_is_in_one_shard(images: int, samples_per_shard: int, seed: int) -> None:
    plan = by_class(1, images, samples_per_shard, seed)
    sizes = [len(plan.shard(shard)) for shard in range(plan.shards)]
    assert sizes[:-1] == [samples_per_shard] * (plan.shards - 1)
    entries = [entry for shard in range(plan.shards) for entry in plan.shard(shard)]
    assert entries == list(plan) and sizes == [plan.size_of(shard) for shard in range(plan.shards)]
    assert sorted(entry.path for entry in entries) == ByClass(1, images).paths
    assert plan.hash() == by_class(1, images, 9, seed).hash(), "the images are the same"
    old, older_ = (by_class(1, images, samples_per_shard, seed, version) for version in (1, 2))
    assert old.hash() == older_.hash() and sorted(entry.path for entry in older_) == ByClass(1, images).paths


def test_the_permutations_never_change() -> None:
    """A begun cache goes on with them, on any machine."""
    assert older.order(12, 3, 2).tolist() == [7, 8, 2, 10, 9, 3, 5, 6, 4, 11, 0, 1]
    assert [int(entry.path[5:10]) for entry in by_class(1, 12, 4, seed=3, version=2)] == [
        *(7, 8, 2, 10, 9, 3, 5, 6, 4, 11, 0, 1)
    ]
    new = [int(entry.path[5:10]) for entry in by_class(1, 12, 4, seed=3)]
    assert new == [
        11,
        0,
        10,
        2,
        8,
        5,
        3,
        4,
        1,
        6,
        7,
        9,
    ]


def test_plans_of_all_formats_are_told_apart(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        plan = write_plan(by_class(2, 5, 4, version=version), tmp_path / "plan.parquet")
        assert folder.format_of(tmp_path) == plan.format == version
        rows = pq.read_table(tmp_path / "plan.parquet").to_pydict()
        assert rows["sid"] == [entry.sid for shard in range(3) for entry in plan.shard(shard)]
        assert rows["shard"] == [0] * 4 + [1] * 4 + [2] * 2
        assert len(set(rows["path"])) == 10 and plan.spread(3) == by_class(2, 5, 4, version=version).spread(3)


Build = Callable[..., Path]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = tmp_path_factory.mktemp("pictures")
    write_images(images, 14)
    (images / "b" / "text.jpg").write_text("no image")
    return images


@pytest.fixture(params=[1, 2])
def old(
    request: pytest.FixtureRequest, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache of an older format."""
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "format_of", lambda _: request.param)
        build(config(pictures, tmp_path / "old"), TinyTeacher(), quiet=True)
    assert read_spec(tmp_path / "old").format == request.param
    return tmp_path / "old"


def members(cache: Path) -> Iterator[tuple[str, bytes]]:
    """(view and name, content) of all members of all shards, in order."""
    for path in sorted(cache.glob("v*/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                yield f"{path.parent.name}/{member.name}", content.read()


def test_a_new_cache_holds_the_samples_of_an_old_one_in_another_order(
    old: Path, pictures: Path, tmp_path: Path
) -> None:
    build(config(pictures, tmp_path / "new"), TinyTeacher(), quiet=True)
    before, after = list(members(old)), list(members(tmp_path / "new"))
    assert dict(before) == dict(after) and len(before) == len(after) == 2 * 14 * 4
    assert [name for name, _ in before] != [name for name, _ in after]
    rows = pq.read_table(tmp_path / "new" / "manifest.parquet").to_pylist()
    assert {row["sid"]: row["path"] for row in rows if row["status"] == "ok"} == {
        row["sid"]: row["path"]
        for row in pq.read_table(old / "manifest.parquet").to_pylist()
        if row["status"] == "ok"
    }
    assert [row["path"] for row in rows] != sorted(row["path"] for row in rows)


def test_an_old_cache_is_read_verified_and_chained_with_a_new_one(
    old: Path, pictures: Path, tmp_path: Path
) -> None:
    build(config(pictures, tmp_path / "new"), TinyTeacher(), quiet=True)
    assert (
        verify(old, lambda _: None, quiet=True) == verify(tmp_path / "new", lambda _: None, quiet=True) == 0
    )
    assert (
        f"format {read_spec(old).format}," in describe(Cache.open(old))[0]
        and "format 3," in describe(Cache.open(tmp_path / "new"))[0]
    )
    both = CachedSource(open_caches([old, tmp_path / "new"]), global_batch=7, micro_batch=7)
    sids = [sid for batch in both.batches(0, 4) for sid in batch.sids]
    assert sorted(sids) == sorted([*{*sids}, *{*sids}]) and len({*sids}) == 14


@pytest.mark.parametrize("file", ["cache.json", "nothing"])
def test_an_old_cache_is_built_to_its_end_with_its_bytes(old: Path, pictures: Path, file: str) -> None:
    whole = tree(old)
    for name in ("manifest.parquet", "manifest.sha256", "v01/shard-000001.parquet", "v00/shard-000002.tar"):
        (old / name).unlink()
    (old / file).unlink(missing_ok=True)
    build(config(pictures, old), TinyTeacher(), quiet=True)
    assert tree(old) == whole
    refuse_other_source(config(pictures, old), read_spec(old), TinyTeacher())  # as repair does


def test_another_seed_is_refused_by_name(old: Path, pictures: Path, tmp_path: Path) -> None:
    build(config(pictures, tmp_path / "new"), TinyTeacher(), quiet=True)
    for out in (old, tmp_path / "new"):
        with pytest.raises(CacheError, match="seed: the cache has 0, asked for 1") as error:
            build(config(pictures, out, seed=1), TinyTeacher(), quiet=True)
        assert "plan" not in str(error.value) and "image folder changed" not in str(error.value)
