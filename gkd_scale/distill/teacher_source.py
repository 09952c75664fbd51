"""Where students get a teacher's tokens from: caches, or a teacher that runs live, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gkd_scale import config
from gkd_scale.cache.certificate import codec_line
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.live import LiveSource
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.location import is_stored
from gkd_scale.cache.reader import Caches, open_caches
from gkd_scale.cache.source import Source
from gkd_scale.cache.spec import FORMAT
from gkd_scale.distill.config import LIVE, Stage1Config
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import CacheError, ConfigError
from gkd_scale.models.registry import load_teacher
from gkd_scale.types import BatchSource

OpenLabelled = Callable[[str | Path], Source | None]
"""Opens images that are a labelled dataset (``camvid:PATH``); None for others."""


@dataclass(frozen=True)
class TeacherSource:
    """A source of batches with a teacher's tokens, and the facts about it.

    ``images``: how many there are. ``fingerprint``: the teacher's. ``identity``: what decides the batches, in
    JSON types. ``about``: lines for people. ``why_wait()`` says why batches are late. ``skipped``: damaged
    samples, by view and number, and what is wrong with them.
    """

    source: BatchSource
    images: int
    fingerprint: dict[str, Any]
    identity: dict[str, Any]
    about: list[str]
    why_wait: Callable[[], str]
    skipped: Mapping[tuple[int, int], str]


def open_source(
    cfg: Stage1Config, runtime: Runtime, plan: DeepSpeedPlan, labelled: OpenLabelled
) -> TeacherSource:
    """The caches of ``cfg``, or its live teacher; this rank's share of each global batch."""
    share = {
        "global_batch": plan.global_batch,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "rank": runtime.rank,
        "world": runtime.world,
        "seed": cfg.run.seed,
        "workers": cfg.run.workers,
        "window": cfg.reading.window,
    }
    return (
        _live(cfg, runtime, share, labelled) if cfg.source.teacher == LIVE else _cached(cfg, runtime, share)
    )


def _cached(cfg: Stage1Config, runtime: Runtime, share: dict[str, int]) -> TeacherSource:
    caches = _open(cfg)
    source = CachedSource(
        caches,
        **share,
        skip_corrupt=cfg.reading.on_corrupt == "skip",
        views=cfg.source.views,
        pin=runtime.device.type == "cuda",
        encoded=runtime.device.type == "cuda",
    )
    lines = [codec_line(cache.path, cache.spec.hash(), cache.spec.codec) for cache in caches.caches]
    views = cfg.source.views or caches.views
    return TeacherSource(
        source,
        caches.num_samples,
        caches.fingerprint,
        {"cache": [cache.spec.hash() for cache in caches.caches]},
        [*lines, f"{caches.num_samples} images, {views} views"],
        source.times.cause,
        source.skipped,
    )


def _open(cfg: Stage1Config) -> Caches:
    home, limit = cfg.reading.mirror.folder.expanduser(), round(cfg.reading.mirror.gb * 1e9)
    caches = open_caches(cfg.source.cache, home=home, limit=limit)
    made_by = caches.fingerprint["model"]
    name = cfg.source.teacher
    if name is not None and name != made_by:
        raise CacheError(
            f"{cfg.source.cache[0]} was made by the teacher '{made_by}', but --teacher asks for '{name}'",
            f"give --teacher {made_by}, or the cache of {name}",
        )
    return caches


def live_config(cfg: Stage1Config) -> CacheTeacherConfig:
    """The options of ``--live`` as those of the cache that would hold the same views; ConfigError."""
    if not cfg.source.live:
        raise ConfigError("--teacher live says neither images nor teacher", "give --live images=PATH ...")
    given = config.from_dotted(cfg.source.live)
    for key in ("out", "ray", "codec_fit", "batch_size", "device", "workers", "views"):
        if key in given:
            raise ConfigError(f"--live does not take '{key}'", f"leave {key} out, or see --help")
    if is_stored(given.get("images", "")):
        raise ConfigError(f"--live images={given['images']}: a live teacher reads images", "give --cache")
    made = config.build(CacheTeacherConfig, {**given, "out": cfg.run.out}, "--live")
    return replace(made, views=cfg.source.views or 1)


def _live(
    cfg: Stage1Config, runtime: Runtime, share: dict[str, int], labelled: OpenLabelled
) -> TeacherSource:
    recipe = live_config(cfg)
    images = labelled(recipe.images)
    teacher = load_teacher(recipe.teacher, recipe.size, str(runtime.device))
    source = LiveSource(
        recipe.images,
        teacher,
        source=images,
        view=recipe.view,
        views=cfg.source.views,
        view_seed=recipe.seed,
        samples_per_shard=recipe.samples_per_shard,
        codec=recipe.codec,
        **share,
    )
    fingerprint = teacher.fingerprint()
    views = f"{cfg.source.views} views" if cfg.source.views else "new views each epoch"
    return TeacherSource(
        source,
        source.num_samples,
        fingerprint,
        {
            "images": source.images_hash(),
            "shards_format": FORMAT,
            "teacher_sha256": fingerprint["weights_sha256"],
        },
        [f"{source.num_samples} images of {recipe.images}, {views}, teacher live", *_left_out(source)],
        source.times.cause,
        {},
    )


def _left_out(source: LiveSource) -> list[str]:
    """One line about images that could not be read, if there are any."""
    for name, reason in source.errors.items():
        return [f"{len(source.errors)} images could not be read and are left out, as {name}: {reason}"]
    return []
