from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pytest
import torch

from gkd_scale.cache.config import ViewConfig
from gkd_scale.cache.live import LiveSource
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.errors import ConfigError, DataError
from gkd_scale.randomness import seed_of
from gkd_scale.types import Batch, BatchSource, Drawn

from .support import TinyTeacher, image_of

Whole = tuple[Path, BuildReport]


def cache_source(whole: Whole, **changes: int) -> CachedSource:
    values = {"global_batch": 6, "micro_batch": 3, "accumulation": 2, "seed": 5, "workers": 2, **changes}
    return CachedSource(Cache.open(whole[0]), **values)


def same(one: Batch, other: Batch) -> bool:
    return (
        (one.sids, one.epochs, one.positions) == (other.sids, other.epochs, other.positions)
        and torch.equal(one.pixels, other.pixels)
        and torch.equal(one.teacher.cls, other.teacher.cls)
        and torch.equal(one.teacher.patches, other.teacher.patches)
    )


def test_shapes_and_types(whole: Whole) -> None:
    source: BatchSource = cache_source(whole)
    batches = list(source.batches(0, 2))
    assert len(batches) == 4
    for batch in batches:
        assert batch.pixels.shape == (3, 3, 32, 48) and batch.pixels.dtype == torch.uint8
        assert batch.teacher.cls.shape == (3, 12) and batch.teacher.cls.dtype == torch.float16
        assert batch.teacher.patches.shape == (3, 24, 12)
    assert [p for batch in batches for p in batch.positions] == [0, 1, 2, 3, 4, 5] * 2
    assert (source.grid, source.image_size, source.teacher_dim) == ((4, 6), (32, 48), 12)


def test_the_bytes_of_steps_are_those_that_are_read(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    actual = os.preadv

    def preadv(*args: Any) -> int:
        counts.append(actual(*args))
        return counts[-1]

    source = cache_source(whole, world=2, accumulation=1, rank=1)
    size = source.bytes_of(3, 8)
    monkeypatch.setattr(os, "preadv", preadv)
    assert len(list(source.batches(3, 8))) == 5
    assert size == sum(counts) > 0


def test_each_sample_once_an_epoch_and_views_by_epoch(whole: Whole) -> None:
    cache = Cache.open(whole[0])
    index = {cache.read(0, i).sid: i for i in range(10)}
    epochs: dict[int, list[str]] = {}
    for batch in cache_source(whole).batches(0, 5):
        for sid, epoch, pixels in zip(batch.sids, batch.epochs, batch.pixels, strict=True):
            epochs.setdefault(epoch, []).append(sid)
            image = image_of(cache.read(epoch % 2, index[sid]).jpeg)
            assert (pixels.permute(1, 2, 0).numpy() == image).all()
    assert {epoch: sorted(sids) == sorted(index) for epoch, sids in epochs.items()} == {
        0: True,
        1: True,
        2: True,
    }


def test_resuming_is_starting_at_another_step(whole: Whole) -> None:
    batches = list(cache_source(whole).batches(0, 6))
    rest = list(cache_source(whole).batches(4, 6))
    assert all(same(a, b) for a, b in zip(batches[8:], rest, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_number_of_threads_changes_nothing(whole: Whole, workers: int) -> None:
    a, b = cache_source(whole).batches(0, 4), cache_source(whole, workers=workers).batches(0, 4)
    assert all(same(x, y) for x, y in zip(a, b, strict=True))


def test_ranks_share_out_the_same_global_batch(whole: Whole) -> None:
    alone = [sid for batch in cache_source(whole).batches(0, 3) for sid in batch.sids]
    ranks = [list(cache_source(whole, rank=rank, world=2, accumulation=1).batches(0, 3)) for rank in range(2)]
    together = [sid for pair in zip(*ranks, strict=True) for batch in pair for sid in batch.sids]
    assert together == alone


def test_a_world_that_does_not_divide_is_refused_at_once(whole: Whole) -> None:
    with pytest.raises(ConfigError, match="global batch 6 is not 4 ranks"):
        cache_source(whole, world=4)


def live(images: Path, **changes: int) -> LiveSource:
    values = {"global_batch": 6, "micro_batch": 3, "accumulation": 2, "seed": 5, "workers": 2, **changes}
    return LiveSource(images, TinyTeacher(), view=ViewConfig(), views=2, samples_per_shard=4, **values)


def test_cached_equals_live(whole: Whole, images: Path) -> None:
    a, b = cache_source(whole).batches(0, 5), live(images).batches(0, 5)
    count = 0
    for batch, run in zip(a, b, strict=True):
        assert (batch.sids, batch.epochs, batch.positions) == (run.sids, run.epochs, run.positions)
        assert torch.equal(batch.pixels, run.pixels)
        for x, y in zip(batch.teacher, run.teacher, strict=True):
            torch.testing.assert_close(x, y, rtol=2**-9, atol=1e-6)
        count += 1
    assert count == 10


def test_random_numbers_are_drawn_on_the_reading_threads(whole: Whole, images: Path) -> None:
    """By names, epochs and places; in the batches that they belong to, for a cache and a live teacher."""
    threads = set()

    def numbers(sids: Sequence[str], epochs: Sequence[int], positions: Sequence[int]) -> Drawn:
        keys = [seed_of(*key) for key in zip(sids, epochs, positions, strict=True)]
        return Drawn(torch.tensor(keys), {}, torch.empty(0))

    def draw(sids: Sequence[str], epochs: Sequence[int], positions: Sequence[int]) -> Drawn:
        threads.add(current_thread())
        return numbers(sids, epochs, positions)

    for source in (cache_source(whole), live(images)):
        for batch in source.batches(0, 3, draw):
            assert batch.drawn is not None
            assert torch.equal(batch.drawn.masked, numbers(batch.sids, batch.epochs, batch.positions).masked)
        assert next(source.batches(0, 1)).drawn is None
    assert threads and main_thread() not in threads


def test_live_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(DataError, match="none of the 1 images"):
        live(tmp_path)


def test_a_live_run_names_the_images_that_it_leaves_out(images: Path, tmp_path: Path) -> None:
    reasons = live(images).errors
    assert reasons == {
        "b/text.jpg": "not an image, or a format that Pillow does not know",
        "b/truncated.png": "image file is truncated",
    }
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"could be read; empty.jpg: the file is empty"):
        live(tmp_path)
