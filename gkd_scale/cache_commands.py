"""The commands that need a cache and its teacher: cache-teacher, plan, verify and repair.

A cache belongs to :mod:`gkd_scale.cache`; images may be a labelled dataset of :mod:`gkd_scale.segment`, which
may import the cache but not the reverse: the two meet here.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

from gkd_scale import console
from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig, PlanConfig, RepairConfig, VerifyConfig
from gkd_scale.cache.ledger import check_ledger
from gkd_scale.cache.location import is_url
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.remote import Outbox
from gkd_scale.cache.repair import repair as rebuild
from gkd_scale.cache.rerun import rerun
from gkd_scale.cache.spec import read_spec
from gkd_scale.cache.stored import follow
from gkd_scale.cache.verify import verify as check_bytes
from gkd_scale.estimate import estimate, show
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.segment.datasets.registry import open_labels


def cache_teacher(cfg: CacheTeacherConfig) -> None:
    """Build a cache and print what was built."""
    report, outbox = build_cache(cfg)
    console.say(*report.lines())
    if outbox is not None:
        console.say(f"{outbox.url} is complete")


def build_cache(cfg: CacheTeacherConfig) -> tuple[BuildReport, Outbox | None]:
    """Build a cache; the second value uploads it, and is None if ``cfg.out`` is a folder.

    Raises ConfigError, ModelError, DataError or CacheError.
    """
    if cfg.ray is not None:
        from gkd_scale.cache.cluster import refuse_silent

        refuse_silent(cfg.ray)
    outbox = None
    if is_url(cfg.out):
        outbox = Outbox(str(cfg.out), cfg.staging)
        cfg.out = outbox.folder
    cfg = follow(cfg)
    load = partial(load_teacher, cfg.teacher, cfg.size)
    first = load("cpu" if cfg.ray is not None else cfg.devices[0])
    return build(cfg, first, load=load, source=open_labels(cfg.images), outbox=outbox), outbox


def plan(cfg: PlanConfig) -> None:
    """Print the cost of a cache."""
    cfg = follow(cfg)
    cost = estimate(cfg, lambda: load_teacher(cfg.teacher, cfg.size, cfg.devices[0]), open_labels(cfg.images))
    if cfg.json:
        print(json.dumps(asdict(cost), indent=2))
    else:
        show(cost, cfg)


def verify(cfg: VerifyConfig) -> int:
    """Print each damage; the exit status. Teacher and ledger are compared only if all bytes are whole."""
    damages = check_bytes(cfg.cache, console.say)
    if cfg.rerun_teacher and not damages:
        cache = Cache.open(cfg.cache)
        config = TeacherConfig.of_fingerprint(cache.fingerprint, cfg.teacher_weights)
        teacher = load_teacher(config, cache.spec.image_size, cfg.device)
        lines = list(rerun(cache, teacher, cfg.rerun_teacher, cfg.tolerance))
        console.say(*lines, f"{cfg.rerun_teacher} samples computed again: {len(lines)} differ")
        damages += len(lines)
    if cfg.ledger is not None and not damages:
        cache = Cache.open(cfg.cache)
        sids = [sid for shard in range(len(cache.shard_sizes)) for sid in cache.sids(shard)]
        epochs, lines = check_ledger(cfg.ledger, sids)
        console.say(*lines, f"ledger: {epochs} whole epochs, {len(lines)} faults")
        damages += len(lines)
    return 1 if damages else 0


def repair(cfg: RepairConfig) -> None:
    """Rebuild the damaged shards of a cache and print what was rebuilt."""
    spec = read_spec(cfg.cache)
    config = TeacherConfig.of_fingerprint(spec.teacher, cfg.teacher_weights)
    teacher = load_teacher(config, spec.image_size, cfg.device)
    report = rebuild(cfg, spec, teacher, console.say, source=open_labels(cfg.images))
    console.say(*report.lines())
