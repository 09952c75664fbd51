"""The source of a teacher's tokens: caches, or a teacher that runs live, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gkd_scale import config
from gkd_scale.cache.certificate import codec_line
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.joined import Joined, open_joined
from gkd_scale.cache.live import LiveSource
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.location import is_stored
from gkd_scale.cache.reader import Caches
from gkd_scale.cache.source import Source
from gkd_scale.cache.spec import FORMAT
from gkd_scale.distill.config import LIVE, Stage1Config
from gkd_scale.distill.objectives.registry import OBJECTIVES
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import CacheError, ConfigError, nearest
from gkd_scale.models.registry import load_teacher
from gkd_scale.types import BatchSource, Grid

OpenLabels = Callable[[str | Path], Source | None]
"""Opens images that are a labelled dataset (``camvid:PATH``); None for others."""


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher: name, fingerprint, width and grid of its tokens, and the ``weight`` of its losses."""

    name: str
    fingerprint: dict[str, Any]
    dim: int
    grid: Grid
    weight: float


@dataclass(frozen=True)
class TeacherSource:
    """A source of batches with the tokens of one teacher or several, and the facts about it.

    ``images``: how many there are; ``views``: of each image, 0 if every epoch has new ones. ``teachers``:
    those of a batch's features. ``identity``: what decides the batches and who teaches how much, in JSON
    types. ``about``: lines for people. ``why_wait()`` says why batches are late. ``skipped``: damaged
    samples, by view and number, and what is wrong with them.
    """

    source: BatchSource
    images: int
    views: int
    teachers: list[TeacherFacts]
    identity: dict[str, Any]
    about: list[str]
    why_wait: Callable[[], str]
    skipped: Mapping[tuple[int, int], str]

    @property
    def names(self) -> str:
        """The names of the teachers for people."""
        return ", ".join(teacher.name for teacher in self.teachers)


def open_source(
    cfg: Stage1Config, runtime: Runtime, plan: DeepSpeedPlan, open_labels: OpenLabels
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
        _live(cfg, runtime, share, open_labels) if cfg.source.teacher == LIVE else _cache(cfg, runtime, share)
    )


def _cache(cfg: Stage1Config, runtime: Runtime, share: dict[str, int]) -> TeacherSource:
    home, limit = cfg.reading.mirror.folder, round(cfg.reading.mirror.gb * 1e9)
    caches = open_joined(cfg.source.cache, home=home, limit=limit)
    by_teacher = caches.teachers if isinstance(caches, Joined) else (caches,)
    all_caches = [cache for group in by_teacher for cache in group.caches]
    _require_named(cfg, by_teacher)
    names = _names([str(teacher.fingerprint["model"]) for teacher in by_teacher])
    candidates = [
        TeacherFacts(name, teacher.fingerprint, teacher.dim, teacher.grid, _weight(cfg, name))
        for name, teacher in zip(names, by_teacher, strict=True)
    ]
    teachers = _teachers(cfg, candidates)
    if isinstance(caches, Joined):
        runtime.on_main(partial(caches.check, max(1, cfg.run.workers)))
    source = CachedSource(
        caches,
        **share,
        silent=[number for number, teacher in enumerate(candidates) if not teacher.weight],
        skip_corrupt=cfg.reading.on_corrupt == "skip",
        views=cfg.source.views,
        pin=runtime.device.type == "cuda",
        encoded=runtime.device.type == "cuda",
    )
    lines = [codec_line(cache.path, cache.spec.hash(), cache.spec.codec) for cache in all_caches]
    views = cfg.source.views or caches.views
    return TeacherSource(
        source,
        caches.num_samples,
        views,
        teachers,
        {"cache": [cache.spec.hash() for cache in all_caches], **_shares(cfg, candidates)},
        [*lines, f"{caches.num_samples} images, {views} views"],
        source.times.cause,
        source.skipped,
    )


def _require_named(cfg: Stage1Config, by_teacher: Sequence[Caches]) -> None:
    """CacheError if a cache is of another teacher than ``--teacher`` says."""
    name = cfg.source.teacher
    for caches in by_teacher:
        made_by = caches.fingerprint["model"]
        if name is not None and name != made_by:
            place = caches.caches[0].path
            raise CacheError(
                f"{place} was made by the teacher '{made_by}', but --teacher asks for '{name}'",
                f"give --teacher {made_by}, or the cache of {name}",
            )


def _weight(cfg: Stage1Config, name: str) -> float:
    return float(cfg.loss.teacher_weights.get(name, 1.0))


def _teachers(cfg: Stage1Config, candidates: Sequence[TeacherFacts]) -> list[TeacherFacts]:
    """The teachers with a weight; ConfigError for options that do not fit their names or number."""
    valid = [teacher.name for teacher in candidates]
    for name in cfg.loss.teacher_weights:
        if name not in valid:
            raise ConfigError(
                f"'loss.teacher_weights' names '{name}', and the teachers are {', '.join(valid)}",
                nearest(name, valid) or "give one of these names",
            )
    teachers = [teacher for teacher in candidates if teacher.weight]
    names = ", ".join(teacher.name for teacher in teachers)
    if not teachers:
        raise ConfigError("'loss.teacher_weights' is 0 for every teacher", "nothing would be learned")
    if len(teachers) == 1 and cfg.loss.teacher_drop:
        raise ConfigError(f"--loss.teacher-drop is given, and {names} teaches alone", "leave it out")
    if len(teachers) > 1 and not OBJECTIVES[cfg.objective].several:
        raise ConfigError(
            f"--objective {cfg.objective} learns from one teacher, and the caches are of {names}",
            "give the others the weight 0 (--loss.teacher-weights NAME=0), or take another --objective",
        )
    return teachers


def _names(models: Sequence[str]) -> list[str]:
    """The models' names; the second teacher of the same model is ``NAME-2``, the third ``NAME-3``."""
    counts = (models[: place + 1].count(name) for place, name in enumerate(models))
    return [f"{name}-{count}" if count > 1 else name for name, count in zip(models, counts, strict=True)]


def _shares(cfg: Stage1Config, teachers: list[TeacherFacts]) -> dict[str, Any]:
    """What decides how much each of several teachers teaches, in JSON types."""
    if len(teachers) == 1:
        return {}
    weights = {teacher.name: teacher.weight for teacher in teachers}
    return {"teachers": weights, "teacher_drop": cfg.loss.teacher_drop}


def live_config(cfg: Stage1Config) -> CacheTeacherConfig:
    """The options of ``--live`` as those of the cache that would hold the same views; ConfigError."""
    if not cfg.source.live:
        raise ConfigError("--teacher live says neither images nor teacher", "give --live images=PATH ...")
    options = config.from_dotted(cfg.source.live)
    for key in ("out", "ray", "codec_fit", "batch_size", "device", "workers", "views"):
        if key in options:
            raise ConfigError(f"--live does not take '{key}'", f"leave {key} out, or see --help")
    if is_stored(options.get("images", "")):
        raise ConfigError(f"--live images={options['images']}: a live teacher reads images", "give --cache")
    recipe = config.build(CacheTeacherConfig, {**options, "out": cfg.run.out}, "--live")
    return replace(recipe, views=cfg.source.views or 1)


def _live(
    cfg: Stage1Config, runtime: Runtime, share: dict[str, int], open_labels: OpenLabels
) -> TeacherSource:
    recipe = live_config(cfg)
    images = open_labels(recipe.images)
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
    name = str(fingerprint["model"])
    facts = TeacherFacts(name, fingerprint, teacher.dim, teacher.grid, _weight(cfg, name))
    views = f"{cfg.source.views} views" if cfg.source.views else "new views each epoch"
    return TeacherSource(
        source,
        source.num_samples,
        cfg.source.views or 0,
        _teachers(cfg, [facts]),
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
    """Lines about images that could not be read, and about what lies beside the images."""
    notes = [f"note: {note}" for note in source.notes]
    if source.errors:
        name, reason = next(iter(source.errors.items()))
        notes.append(f"{len(source.errors)} images could not be read and are left out, as {name}: {reason}")
    return notes
