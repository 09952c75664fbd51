"""What a build does in a folder that is not empty."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gkd_scale.cache.build import build
from gkd_scale.cache.progress import BuildReport
from gkd_scale.errors import CacheError

from .support import TinyTeacher, config, tree, write_images

Whole = tuple[Path, BuildReport]


def test_what_a_kill_left_half_written_goes(images: Path, whole: Whole, copy: Any) -> None:
    out = copy()
    for name in ("cache.json.part", "manifest.parquet.part", "v01/shard-000002.tar.part"):
        (out / name).write_bytes(b"half")
    build(config(images, out), TinyTeacher(), quiet=True)
    assert tree(out) == tree(whole[0])


def test_another_spec_is_refused_with_both_values(images: Path, copy: Any) -> None:
    out = copy()
    before = tree(out)
    with pytest.raises(CacheError) as error:
        build(config(images, out, seed=7, views=3), TinyTeacher(gain=2.0), quiet=True)
    text = str(error.value)
    assert "seed: the cache has 0, asked for 7" in text
    assert "views: the cache has 2, asked for 3" in text
    assert "teacher.gain: the cache has 1.0, asked for 2.0" in text
    assert tree(out) == before


def test_a_changed_image_folder_is_refused_with_counts(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "cache"
    write_images(images, 5)
    build(config(images, out), TinyTeacher(), quiet=True)
    Image.new("RGB", (9, 9)).save(images / "new.png")
    (images / "b" / "001.PNG").unlink()
    Image.new("RGB", (200, 200), "red").save(images / "b" / "002.webp")
    with pytest.raises(CacheError) as error:
        build(config(images, out), TinyTeacher(), quiet=True)
    for part in ("1 added (new.png)", "1 removed (b/001.PNG)", "1 resized (b/002.webp)"):
        assert part in str(error.value)


def test_a_folder_with_other_things_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match=r"not a teacher cache \(it holds thesis.tex\)"):
        build(config(images, tmp_path), TinyTeacher(), quiet=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


def test_out_may_be_neither_the_image_folder_nor_a_file(images: Path, tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    with pytest.raises(CacheError, match="is not empty and not a teacher cache"):
        build(config(tmp_path, tmp_path), TinyTeacher(), quiet=True)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(CacheError, match="is not a folder"):
            build(config(images, out), TinyTeacher(), quiet=True)


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr("gkd_scale.cache.folder.write_spec", refuse)
    with pytest.raises(CacheError, match="cannot be written: Read-only file system"):
        build(config(images, tmp_path), TinyTeacher(), quiet=True)


def test_two_builders_do_not_fight(images: Path, tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CacheError, match="another process is writing"):
            build(config(images, tmp_path), TinyTeacher(), quiet=True)
    assert build(config(images, tmp_path), TinyTeacher(), quiet=True).shards_built == 6
