"""The seam of stage 1: a cached run equals a live run within the codec's tolerance."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.live import LiveSource
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import open_caches
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.models.conditioning import fit
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.students import load_student
from gkd_scale.types import BatchSource
from tests.conftest import TINY, write_images


def train(source: BatchSource, steps: int = 8) -> list[float]:
    """Losses of a few steps from ``source``, which the loop knows as a BatchSource only."""
    torch.manual_seed(0)
    student = load_student("vit_tiny_patch16_224", source.image_size, source.grid, args=dict(TINY))
    distiller = Distiller(student, TeacherSpace(source.teacher_dim, source.grid))
    optimizer = torch.optim.AdamW(distiller.parameters(), 1e-3)
    losses = []
    for batch in source.batches(0, steps, distiller.draws):
        loss = distiller(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_cached_run_equals_a_live_run(tmp_path: Path, tiny_teacher: Path) -> None:
    cfg = CacheTeacherConfig(
        images=write_images(tmp_path / "images", 10), image_size="32x48", views=2, samples_per_shard=4,
        out=tmp_path / "cache", seed=3,
    )  # fmt: skip
    teacher = load_teacher(
        TeacherConfig("vit_tiny_patch16_224", weights=tiny_teacher, args=dict(TINY)), cfg.size
    )
    build(cfg, teacher, quiet=True)
    order = {"global_batch": 4, "micro_batch": 4, "seed": 7}
    cache_source = CachedSource(open_caches([cfg.out]), **order)
    live = LiveSource(cfg.images, teacher, view=cfg.view, views=2, view_seed=3, samples_per_shard=4, **order)
    assert train(cache_source) == pytest.approx(train(live), rel=1e-3)


@pytest.mark.parametrize("norm", ["standard", "whiten", "phi-s"])
def test_cached_and_live_teachers_are_conditioned_alike(
    tmp_path: Path, tiny_teacher: Path, norm: str
) -> None:
    cfg = CacheTeacherConfig(
        images=write_images(tmp_path / "images", 10), image_size="32x48", views=2, samples_per_shard=4,
        out=tmp_path / "cache", seed=3,
    )  # fmt: skip
    teacher = load_teacher(
        TeacherConfig("vit_tiny_patch16_224", weights=tiny_teacher, args=dict(TINY)), cfg.size
    )
    build(cfg, teacher, quiet=True)
    order = {"global_batch": 4, "micro_batch": 4, "seed": 7}
    cache_source = CachedSource(open_caches([cfg.out]), **order)
    live = LiveSource(cfg.images, teacher, view=cfg.view, views=2, view_seed=3, samples_per_shard=4, **order)
    count = sum(len(features.cls) for features in cache_source.spread(7))
    assert count == 7 and sum(len(features.cls) for features in cache_source.spread(100)) == 20
    one, two = (fit(source.spread(100), norm) for source in (cache_source, live))
    batch = next(iter(cache_source.batches(0, 1)))
    for first, second in zip(one(batch.teacher), two(batch.teacher), strict=True):
        torch.testing.assert_close(first, second, atol=1e-2, rtol=1e-2)
