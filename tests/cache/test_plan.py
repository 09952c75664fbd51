from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gkd_scale.cache.location import EXTENSIONS
from gkd_scale.cache.plan import make_plan, sid_of, write_plan
from gkd_scale.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def paths(folder: Path) -> list[str]:
    return sorted(entry.path for entry in make_plan(folder, 4))


def test_images_are_found_and_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b/x.JPG",
        "a.png",
        "b/c/y.TiFf",
        "z.webp",
        "notes.txt",
        "b/.hidden.png",
        ".git/q.png",
        "a/1.bmp",
    )
    assert paths(tmp_path) == ["a.png", "a/1.bmp", "b/c/y.TiFf", "b/x.JPG", "z.webp"]


def test_shards_are_fixed_cuts_of_the_list(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.png" for i in range(10)))
    plan = make_plan(tmp_path, 4)
    assert plan.shards == 3 and [len(plan.shard(s)) for s in range(3)] == [4, 4, 2]
    disk_plan = write_plan(plan, tmp_path / "plan.parquet")
    assert [disk_plan.shard(shard) for shard in range(3)] == [plan.shard(shard) for shard in range(3)]
    rows = pq.read_table(tmp_path / "plan.parquet").to_pylist()
    assert {"sid": sid_of("3.png"), "path": "3.png", "bytes": 5} in [
        {key: row[key] for key in ("sid", "path", "bytes")} for row in rows
    ]
    assert [row["shard"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 2


def test_sids_are_hex_and_stable() -> None:
    assert sid_of("a/b.jpg") == "67ed673b4d9fccae"
    assert sid_of("a/b.jpg") != sid_of("a/c.jpg") and int(sid_of("a"), 16) >= 0


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "m/1.png", "m/n/2.png")
    (tmp_path / "m/n/loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "m")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    touch(outside, "3.png")
    (tmp_path / "linked").symlink_to(outside)
    assert paths(tmp_path) == ["linked/3.png", "m/1.png", "m/n/2.png"]


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_text("x")
    plan = write_plan(make_plan(tmp_path, 4), tmp_path / "plan.parquet")
    assert pq.read_table(tmp_path / "plan.parquet")["path"].to_pylist() == ["caf\\xe9.png"]
    assert [entry.path for entry in plan] == [os.fsdecode(b"caf\xe9.png")], "the build opens it"


def test_empty_and_missing_folders_name_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        make_plan(tmp_path / "nowhere", 4)
    touch(tmp_path, "notes.md")
    with pytest.raises(DataError, match="is not a folder"):
        make_plan(tmp_path / "notes.md", 4)
    with pytest.raises(DataError, match="holds no images") as empty:
        make_plan(tmp_path, 4)
    assert all(extension in str(empty.value) for extension in EXTENSIONS)


def test_help_imports_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys; import gkd_scale.cache, gkd_scale.cache.config; "
        "sys.exit(bool({'torch', 'pyarrow', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
