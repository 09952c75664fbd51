"""The order of a plan: sorted parts, merged; names that collide; a listing that goes on after a kill."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.cache import listing, parts
from gkd_scale.cache.listing import FolderListing
from gkd_scale.cache.parts import PARTS, key_of
from gkd_scale.cache.plan import ImagePlan, make_plan, sid_of, write_plan
from gkd_scale.errors import DataError
from gkd_scale.randomness import seed_of

PATHS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    unique=True,
    min_size=1,
)


class Names:
    """A source of nothing but names."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def entries(self) -> Iterator[tuple[str, int]]:
        return ((name, len(name)) for name in self.names)

    def read(self, name: str) -> bytes:
        raise OSError(name)


def plan_of(names: list[str], seed: int = 0) -> ImagePlan:
    return make_plan("names", 3, source=Names(names), seed=seed)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of three images."""
    monkeypatch.setattr(parts, "PART", 3)
    monkeypatch.setattr(parts, "_TOGETHER", 2)
    monkeypatch.setattr(listing, "_TOGETHER", 2)


@given(PATHS, st.integers(0, 2**31), st.data())
def test_the_order_is_a_function_of_names_and_seed_alone(
    names: list[str], seed: int, data: st.DataObject
) -> None:
    plan = plan_of(names, seed)
    assert sorted(entry.path for entry in plan) == sorted(names)
    assert [entry.sid for entry in plan] == [sid_of(entry.path) for entry in plan]
    keys = key_of(np.array([int(entry.sid, 16) for entry in plan], np.uint64), seed_of("plan", seed))
    assert keys.tolist() == sorted(keys.tolist())
    other = plan_of(data.draw(st.permutations(names)), seed)
    assert list(other) == list(plan) and other.hash() == plan.hash()


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 12), st.integers(0, 2**31))
def test_parts_give_the_order_of_one_sort(images: int, seed: int) -> None:
    names = [f"{image}.png" for image in range(images + 1)]
    whole = plan_of(names, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", 3)
        patch.setattr(parts, "_TOGETHER", 2)
        patch.setattr(listing, "_TOGETHER", 2)
        plan = plan_of(names, seed)
    assert list(plan) == list(whole) and plan.hash() == whole.hash()


@pytest.mark.usefixtures("small_parts")
def test_a_plan_in_parts_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{image}.png" for image in range(20)]
    plan = make_plan("names", 3, source=Names(names), folder=tmp_path)
    assert len(list((tmp_path / PARTS).glob("part-*.arrow"))) >= 4
    disk_plan = write_plan(plan, tmp_path / "plan.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.parquet"]
    monkeypatch.undo()
    write_plan(plan_of(names), tmp_path / "whole.parquet")
    assert (tmp_path / "plan.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert list(disk_plan) == list(plan_of(names))
    assert [disk_plan.shard(6), disk_plan.spread(2)] == [plan_of(names).shard(6), plan_of(names).spread(2)]


# ------------------------------------------------------------------------------ equal names


class TwoBytes:
    """A hash of two bytes: some names are equal."""

    def __init__(self, data: bytes, digest_size: int) -> None:
        assert digest_size == 8
        self._bytes = hashlib.sha256(data).digest()[:2]

    def digest(self) -> bytes:
        return bytes(6) + self._bytes


@pytest.mark.parametrize("in_parts", [False, True])
def test_images_of_one_name_get_names_of_their_own(monkeypatch: pytest.MonkeyPatch, in_parts: bool) -> None:
    names = [f"{image}.png" for image in range(1500)]
    monkeypatch.setattr(parts.hashlib, "blake2b", TwoBytes)
    assert len({sid_of(name) for name in names}) < len(names), "some are equal"
    if in_parts:
        monkeypatch.setattr(parts, "PART", 400)
        monkeypatch.setattr(parts, "_TOGETHER", 100)
        monkeypatch.setattr(listing, "_TOGETHER", 100)
    plan = plan_of(names)
    assert len({entry.sid for entry in plan}) == len(plan) == 1500
    assert sorted(entry.path for entry in plan) == sorted(names)
    sids = {entry.path: entry.sid for entry in plan}
    others = {entry.path: entry.sid for entry in plan_of(names[::-1])}
    assert sids == others
    plain = [name for name in names if sids[name] == sid_of(name)]
    assert 1400 < len(plain) < 1500


def test_an_image_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"b\.png is listed twice"):
        plan_of(["a.png", "b.png", "b.png"])


# ------------------------------------------------------------------------ goes on after a kill


def folders(root: Path, count: int, images: int) -> Path:
    for folder in range(count):
        (root / f"{folder:02d}").mkdir(parents=True)
        for image in range(images):
            (root / f"{folder:02d}" / f"{image}.png").write_text("x" * image)
    return root


SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.cache.test_parts import begin
begin(Path(sys.argv[1]), Path(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


class Stop(Exception):
    """Stands for a kill."""


def begin(images: Path, out: Path, stop: Callable[[], object]) -> None:
    """Make a plan in small parts and stop where the folder 06 is listed, with the parts before it written."""
    instances, list_folder = list[parts.Parts](), FolderListing._list

    def add(self: parts.Parts, images: listing.Images, unit: listing.Unit | None = None) -> None:
        instances.append(self)
        add_images(self, images, unit)

    def list_one(self: FolderListing, units: dict[str, listing.Unit], folder: str) -> Any:
        if folder >= "06":
            instances[0]._writer.wait()
            stop()
        return list_folder(self, units, folder)

    with pytest.MonkeyPatch.context() as patch:
        add_images = parts.Parts.add
        patch.setattr(parts.Parts, "add", add)
        patch.setattr(FolderListing, "_list", list_one)
        patch.setattr(parts, "PART", 4)
        patch.setattr(parts, "_TOGETHER", 1)
        patch.setattr(listing, "THREADS", 0)
        make_plan(images, 3, folder=out)


def interrupt() -> None:
    raise Stop


@pytest.fixture
def remains(tmp_path: Path) -> tuple[Path, Path]:
    """Images, and the folder of a cache whose plan was stopped while the folder 06 was listed."""
    images, out = folders(tmp_path / "images", 10, 4), tmp_path / "out"
    out.mkdir()
    with pytest.raises(Stop):
        begin(images, out, interrupt)
    assert len(list((out / PARTS).glob("part-*.arrow"))) >= 5
    return images, out


def test_a_plan_that_was_killed_goes_on(tmp_path: Path) -> None:
    images, out = folders(tmp_path / "images", 10, 4), tmp_path / "out"
    out.mkdir()
    result = subprocess.run([sys.executable, "-c", SCRIPT, str(images), str(out)], check=False)
    assert result.returncode == -9 and len(list((out / PARTS).glob("part-*.arrow"))) >= 5
    assert list(make_plan(images, 3, folder=out)) == list(make_plan(images, 3))


def _images(folder: Path) -> list[tuple[str, int]]:
    """(path, bytes) of the images of a folder."""
    return sorted(image for _, images in FolderListing(folder).units({}) for image in images)


def watch_folders(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are read from now on."""
    folders, entries = list[str](), listing._entries
    monkeypatch.setattr(listing, "_entries", lambda folder: folders.append(folder.name) or entries(folder))  # type: ignore[func-returns-value]
    return folders


def test_a_plan_goes_on_with_the_folders_that_it_lacks(
    remains: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = remains
    names = watch_folders(monkeypatch)
    plan = make_plan(images, 3, folder=out)
    assert set(names) <= {"images", "05", "06", "07", "08", "09"}
    assert list(plan) == list(make_plan(images, 3)) and plan.hash() == make_plan(images, 3).hash()
    write_plan(plan, out / "plan.parquet")
    assert [path.name for path in out.iterdir()] == ["plan.parquet"]


def test_a_folder_that_changed_is_listed_again(
    remains: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = remains
    (images / "02" / "new.png").write_text("new")
    (images / "03" / "0.png").unlink()
    names = watch_folders(monkeypatch)
    plan = make_plan(images, 3, folder=out)
    assert {"02", "03"} <= set(names) and "01" not in names
    assert list(plan) == list(make_plan(images, 3))


def test_a_folder_that_is_gone_is_forgotten(remains: tuple[Path, Path]) -> None:
    images, out = remains
    (images / "04").rename(images / "zz")
    plan = make_plan(images, 3, folder=out)
    assert list(plan) == list(make_plan(images, 3)) and "zz/0.png" in {entry.path for entry in plan}


@pytest.mark.parametrize("change", ["seed", "images", "damage"])
def test_parts_of_another_plan_are_not_taken(remains: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    images, out = remains
    other = folders(tmp_path / "other", 3, 2) if change == "images" else images
    if change == "damage":
        for path in (out / PARTS).iterdir():
            path.write_bytes(path.read_bytes()[:-9])
    plan = make_plan(other, 3, seed=5 if change == "seed" else 0, folder=out)
    assert list(plan) == list(make_plan(other, 3, seed=5 if change == "seed" else 0))


def test_what_a_link_reached_before_is_not_taken_when_the_link_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 2)
    images, target, out = (
        folders(tmp_path / "images", 2, 2),
        folders(tmp_path / "linked", 1, 4),
        tmp_path / "out",
    )
    out.mkdir()
    (images / "00" / "link").symlink_to(target)
    whole = make_plan(images, 3, folder=out)
    assert len(whole) == 8
    (images / "00" / "link").unlink()
    assert len(make_plan(images, 3, folder=out)) == 4


def test_a_listing_of_several_threads_is_that_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folders(tmp_path, 30, 3)
    for folder in range(0, 30, 7):
        (images / f"{folder:02d}" / "up").symlink_to(images)
        (images / f"{folder:02d}" / "inner").mkdir()
        (images / f"{folder:02d}" / "inner" / "x.jpg").write_text("x")
    entries = _images(images)
    monkeypatch.setattr(listing, "THREADS", 0)
    assert _images(images) == entries and len(entries) == 95
    assert [size for _, size in entries[:3]] == [0, 1, 2]


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    images = folders(tmp_path, 2, 1)
    (images / "01").chmod(0)
    try:
        if os.access(images / "01", os.R_OK):
            pytest.skip("root may list all")
        with pytest.raises(DataError, match="01 cannot be listed"):
            _images(images)
    finally:
        (images / "01").chmod(0o755)


def test_a_stamp_is_of_the_folder(tmp_path: Path) -> None:
    images = folders(tmp_path, 2, 1)
    before = FolderListing(images).stamp("01")
    os.utime(images / "01", ns=(1, 1))
    assert FolderListing(images).stamp("01") != before
