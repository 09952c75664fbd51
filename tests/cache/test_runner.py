"""Builders: threads, batches in flight, errors."""

from __future__ import annotations

import threading
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from gkd_scale.cache.build import build
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.errors import CacheError
from gkd_scale.types import Features

from .support import TinyTeacher, config, tree

Whole = tuple[Path, BuildReport]


def test_threads_and_inline_make_the_same_bytes(whole: Whole, images: Path, tmp_path: Path) -> None:
    build(config(images, tmp_path / "cache", workers=0), TinyTeacher(), quiet=True)
    assert tree(tmp_path / "cache") == tree(whole[0])


def test_tokens_beyond_fp16_name_the_image(images: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"b/004.PNG \(sid [0-9a-f]{16}\).*beyond fp16"):
        build(config(images, tmp_path), TinyTeacher(gain=1e6), quiet=True)
    with pytest.raises(CacheError, match="not finite"):
        build(config(images, tmp_path / "nan"), TinyTeacher(gain=float("nan")), quiet=True)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("fail_at", [0, 1, 4, 7])
def test_a_broken_build_goes_on_to_the_same_bytes(
    whole: Whole, images: Path, tmp_path: Path, fail_at: int, device: str
) -> None:
    out = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="the teacher broke"):
        build(config(images, out, device=device), TinyTeacher(fail_at=fail_at), quiet=True)
    assert not (out / "manifest.parquet").exists()
    assert not list(out.rglob("*.part"))
    report = build(config(images, out), TinyTeacher(), quiet=True)
    assert tree(out) == tree(whole[0])
    assert report.errors == whole[1].errors
    assert report.shards_built <= 6 - fail_at // 2


def test_on_a_gpu_one_batch_is_in_flight_while_the_next_is_put_together(
    whole: Whole, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each teacher call waits for the next batch of its shard to be stacked."""
    stacks, stack = threading.Semaphore(0), np.stack
    threads: dict[str, set[int]] = {"cpu": set(), "cuda:0": set()}
    batches = [-(-size // 3) for size in Cache.open(whole[0]).shard_sizes * 2]
    starts = [0, *accumulate(batches)]
    pairs = [start for start, count in zip(starts, batches, strict=False) if count == 2]
    assert 0 < len(pairs) < len(batches), "shards of one batch and of two"

    def spy(*arrays: Any, **options: Any) -> Any:
        stacks.release()
        return stack(*arrays, **options)

    class Waiter(TinyTeacher):
        def __call__(self, pixels: Tensor) -> Features:
            threads[device].add(threading.get_ident())
            assert stacks.acquire(timeout=20), "the batch itself"
            if device != "cpu" and self.calls in pairs:
                assert stacks.acquire(timeout=20), "the batch after it"
                stacks.release()
            return super().__call__(pixels)

    monkeypatch.setattr("gkd_scale.cache.runner.np.stack", spy)
    for device in threads:
        build(config(images, tmp_path / device, device=device), Waiter(), quiet=True)
        assert tree(tmp_path / device) == tree(whole[0])
    assert threads["cpu"] == {threading.get_ident()}
    assert len(threads["cuda:0"]) == 1 and threads["cuda:0"] != threads["cpu"]


def test_an_error_of_the_writer_stops_the_teacher(images: Path, tmp_path: Path) -> None:
    """The first batch cannot be stored; with short queues the teacher sees a few batches more, not all."""
    teacher = TinyTeacher(gain=1e6)
    with pytest.raises(CacheError, match="beyond fp16"):
        build(config(images, tmp_path, device="cuda:0", batch_size=1), teacher, quiet=True)
    assert teacher.calls < 10 and not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.tar"))
