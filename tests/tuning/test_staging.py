from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import staging

from gkd_scale.cache.reader import open_caches
from gkd_scale.errors import CacheError


@pytest.mark.parametrize("uri", [True, False])
def test_a_local_copy_is_the_cache(tiny_cache: Path, tmp_path: Path, uri: bool) -> None:
    source = tiny_cache.as_uri() if uri else str(tiny_cache)
    copy = staging.local_copy(source, tmp_path / "disk")
    mine, theirs = open_caches([copy]), open_caches([tiny_cache])
    assert mine.read(0, 3).jpeg == theirs.read(0, 3).jpeg
    before = copy.stat().st_mtime_ns
    assert staging.local_copy(source, tmp_path / "disk") == copy
    assert copy.stat().st_mtime_ns == before


def test_many_at_once_make_one_copy(tiny_cache: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        copies = set(pool.map(lambda _: staging.local_copy(str(tiny_cache), tmp_path), range(4)))
    assert len(copies) == 1
    assert not list(tmp_path.glob("*.part"))


def test_half_a_copy_is_made_again(tiny_cache: Path, tmp_path: Path) -> None:
    copy = staging.local_copy(str(tiny_cache), tmp_path)
    shutil.move(copy, copy.with_name(copy.name + ".part"))
    assert open_caches([staging.local_copy(str(tiny_cache), tmp_path)]).num_samples == 12


@pytest.mark.parametrize("source", ["nowhere", "file:///nowhere", "nonsense://there"])
def test_what_is_no_cache_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"nowhere|nonsense"):
        staging.local_copy(source, tmp_path)
