"""``cache-teacher``: images in, a whole cache out, whatever happens on the way.

The plan fixes shards and batches before the start, and batches never span shards. A shard's bytes
therefore depend on its images alone: a build that was killed builds the shards that have no index and
ends with the same bytes as one that was not. ``manifest.parquet`` is written last: if it is there, the
cache is complete.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from gkd_scale.cache.cluster import Load
from gkd_scale.cache.codecs.base import STATE, Codec, state_bytes, state_hash
from gkd_scale.cache.codecs.registry import fit_codec, get_codec, is_fitted, load_codec, parse
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.devices import build_shards
from gkd_scale.cache.folder import ShardTask, format_of, hold, missing_shards, prepare
from gkd_scale.cache.location import is_stored
from gkd_scale.cache.manifest import finish
from gkd_scale.cache.plan import ImagePlan, make_plan
from gkd_scale.cache.progress import BuildReport, display
from gkd_scale.cache.remote import Outbox
from gkd_scale.cache.runner import BuildJob, Events
from gkd_scale.cache.source import LabelledSource, Source
from gkd_scale.cache.spec import Spec, read_spec
from gkd_scale.cache.stored import follow, open_stored
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.views import MadeView, views_of
from gkd_scale.errors import CacheError, DamageError, DataError, ModelError
from gkd_scale.moments import Moments
from gkd_scale.prefetch import BackgroundJobs
from gkd_scale.types import Teacher


def build(
    cfg: CacheTeacherConfig,
    teacher: Teacher,
    *,
    load: Load | None = None,
    source: Source | None = None,
    outbox: Outbox | None = None,
    quiet: bool = False,
) -> BuildReport:
    """Make the cache that ``cfg`` describes, or go on with it. ``quiet`` shows no progress bar.

    ``load(device)`` makes more teachers, for the other devices of ``cfg.device`` and for ``cfg.ray``.
    ``source`` reads ``cfg.images`` if they are a labelled dataset. ``outbox`` uploads the shards that are
    built in its folder ``cfg.out``.

    Raises ConfigError, DataError, CacheError, ModelError or DiskFullError for what the user can mend.
    After any error the same command goes on.
    """
    start = time.monotonic()
    parse(cfg.codec)  # an unknown codec is an error before anything is read
    cfg = follow(cfg)
    with hold(cfg.out):
        plan = plan_of(cfg, source, format_of(cfg.out), cfg.out, quiet)
        spec = make_spec(cfg, teacher, plan)
        codec = _codec_of(cfg, teacher, plan)
        spec = replace(spec, codec_state=state_hash(state_bytes(codec)))
        plan = prepare(cfg.out, spec, plan, codec)
        if outbox is not None:
            outbox.begin()
        total, shards = spec.views * len(plan), spec.views * spec.shards
        report = BuildReport(cfg.out, len(plan), spec.views, shards, notes=plan.notes)
        if tasks := missing_shards(cfg.out, spec, outbox):
            completed = total - sum(plan.size_of(task.shard) for task in tasks)
            with display(report, total, completed, quiet) as advance, BackgroundJobs() as sender:

                def on_commit(task: ShardTask) -> None:
                    if outbox is not None:
                        sender.submit(partial(outbox.send, *task))

                job, events = BuildJob(cfg, codec, spec, plan), Events(report, advance, on_commit)
                build_shards(job, tasks, teacher, load, events)
        report.errors = finish(cfg.out, spec, plan)
        if outbox is not None:
            outbox.finish()
    report.seconds.total = time.monotonic() - start
    return report


def plan_of(
    cfg: CacheTeacherConfig,
    source: Source | None,
    version: int,
    folder: Path | None = None,
    quiet: bool = True,
) -> ImagePlan:
    """The plan of the cache that ``cfg`` describes, in the format ``version``; see :func:`make_plan`.

    If the images are ``cache:CACHE`` it is that cache's plan, in its format.
    """
    if is_stored(cfg.images):
        return open_stored(cfg.images).plan()
    return make_plan(
        cfg.images,
        cfg.samples_per_shard,
        cfg.out,
        source,
        cfg.seed,
        version=version,
        folder=folder,
        quiet=quiet,
    )


def make_spec(cfg: CacheTeacherConfig, teacher: Teacher, plan: ImagePlan) -> Spec:
    """The spec of the cache that ``cfg`` describes; ModelError if the teacher takes another image size."""
    if tuple(teacher.image_size) != cfg.size:
        raise ModelError(
            f"the teacher takes images of {teacher.image_size[0]}x{teacher.image_size[1]}, not "
            f"{cfg.size[0]}x{cfg.size[1]}",
            "change --image-size",
        )
    return Spec(
        teacher=teacher.fingerprint(),
        dim=teacher.dim,
        grid=(teacher.grid[0], teacher.grid[1]),
        image_size=cfg.size,
        codec=cfg.codec,
        view=asdict(cfg.view),
        views=cfg.views,
        seed=cfg.seed,
        images=len(plan),
        samples_per_shard=cfg.samples_per_shard,
        plan=plan.hash(),
        format=plan.format,
        labels=plan.source.labels if isinstance(plan.source, LabelledSource) else {},
        pixels=plan.view_source.origin if plan.view_source is not None else {},
    )


def _codec_of(cfg: CacheTeacherConfig, teacher: Teacher, plan: ImagePlan) -> Codec:
    """The codec ``cfg.codec``. One that must be fitted comes from the folder ``cfg.out`` if that has it."""
    if not is_fitted(cfg.codec):
        return get_codec(cfg.codec)
    with contextlib.suppress(OSError, CacheError, DamageError):
        spec = read_spec(cfg.out)
        if spec.codec == cfg.codec:
            return load_codec(spec.codec, (cfg.out / STATE).read_bytes(), spec.codec_state)
    return _fit(cfg, teacher, plan)


def _fit(cfg: CacheTeacherConfig, teacher: Teacher, plan: ImagePlan) -> Codec:
    """The codec for the patch tokens of ``cfg.codec_fit`` images of the plan, evenly spaced, view 0.

    A function of the images, the teacher and the batch size. DataError if no image can be read.
    """
    entries = plan.spread(cfg.codec_fit)
    views = views_of(cfg, plan, ((entry, 0) for entry in entries))
    moments = Moments(teacher.dim)
    whole = (view for view in views if isinstance(view, MadeView))
    while batch := list(islice(whole, cfg.batch_size)):
        tokens = run_teacher(teacher, np.stack([view.pixels for view in batch])).patches.numpy()
        moments.update(tokens.reshape(-1, teacher.dim))
    if not moments.count:
        raise DataError(f"none of {len(entries)} images of {cfg.images} could be read", "check --images")
    return fit_codec(cfg.codec, moments.mean, moments.covariance)
