"""Stage 1: caches and a student in, a distilled backbone out; never a label.

The same function does both phases of the method: task-agnostic (a cache of proxy images, a student
from scratch) and domain-agnostic (a cache of source images, ``--student-weights`` the first run).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gkd_scale import console
from gkd_scale.cache.certificate import codec_line
from gkd_scale.cache.ledger import FOLDER as LEDGER
from gkd_scale.cache.ledger import recorded
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import Caches, open_caches
from gkd_scale.distill.config import Stage1Config
from gkd_scale.distill.distiller import Distiller
from gkd_scale.engine import ds_config, run
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.loop import Job, fit
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.schedule import cosine
from gkd_scale.errors import CacheError
from gkd_scale.models import backbone, weights
from gkd_scale.models.students import load_student
from gkd_scale.randomness import seed_of
from gkd_scale.types import Batch

KIND = "stage1"
DEFAULT_STEPS = 400
DEFAULT_GLOBAL_BATCH = 32


def train(
    cfg: Stage1Config,
    runtime: Runtime,
    bundled: Path,
    prepare: Callable[[Job], None] = lambda _: None,
) -> None:
    """Run stage 1 on every rank; ``bundled`` is the folder with the DeepSpeed configs.

    ``prepare(job)`` may add to what the loop does; ``job.module`` is the Distiller, not yet sharded.
    """
    began = time.monotonic()
    plan = ds_config.resolve(
        cfg.ds_config,
        bundled,
        global_batch=cfg.global_batch,
        world=runtime.world,
        device=runtime.device,
        default=DEFAULT_GLOBAL_BATCH,
    )
    done = runtime.on_main(lambda: run.begin(cfg.out, cfg, KIND))
    caches = _open(cfg)
    steps = _steps(cfg, caches, plan)
    distiller = _distiller(cfg, caches)
    identity = run.identity(
        cfg,
        initial_weights=weights.fingerprint(distiller.student.net),
        cache=[cache.spec.hash() for cache in caches.caches],
        steps=steps,
        global_batch=plan.global_batch,
    )
    if done:
        run.require_same(cfg.out, identity)
        if runtime.main:
            console.out.print(f"{cfg.out} is already complete: {cfg.out / backbone.WEIGHTS_FILE}")
        return
    if runtime.main:
        _introduce(cfg, plan, caches, distiller, steps)
    source = _source(cfg, runtime, plan, caches)
    job = _job(cfg, runtime, plan, source, distiller, steps, identity)
    prepare(job)
    trained = fit(job, runtime, plan, cfg.out)
    state = trained.state(distiller.student.net)
    facts = {
        "image_size": list(caches.image_size),
        "teacher": caches.fingerprint["model"],
        "teacher_sha256": caches.fingerprint["weights_sha256"],
        "steps": steps,
    }
    runtime.on_main(lambda: backbone.export(cfg.out, distiller.student.spec, state, **facts))
    seconds = time.monotonic() - began
    runtime.on_main(lambda: run.finish(cfg.out, KIND, identity, seconds=round(seconds, 1), steps=steps))
    _tell_skipped(source, runtime)
    if runtime.main:
        _conclude(cfg, seconds)


def default_lr(global_batch: int) -> float:
    """The peak learning rate where none is given: linear in the global batch, with a floor."""
    return max(5e-4 * global_batch / 512, 2.5e-4)


def _open(cfg: Stage1Config) -> Caches:
    home, limit = cfg.mirror.expanduser(), round(cfg.mirror_gb * 1e9)
    caches = open_caches(cfg.cache, home=home, limit=limit)
    made_by = caches.fingerprint["model"]
    if cfg.teacher is not None and cfg.teacher != made_by:
        raise CacheError(
            f"{cfg.cache[0]} was made by the teacher '{made_by}', but --teacher asks for '{cfg.teacher}'",
            f"give --teacher {made_by}, or the cache of {cfg.teacher}",
        )
    return caches


def _steps(cfg: Stage1Config, caches: Caches, plan: DeepSpeedPlan) -> int:
    if cfg.epochs is not None:
        return max(1, round(cfg.epochs * caches.num_samples / plan.global_batch))
    return cfg.steps or DEFAULT_STEPS


def _distiller(cfg: Stage1Config, caches: Caches) -> Distiller:
    torch.manual_seed(seed_of("init", cfg.seed))
    student = load_student(
        cfg.student,
        caches.image_size,
        caches.grid,
        weights=cfg.student_weights,
        args=cfg.student_args,
        drop_path=cfg.drop_path,
    )
    return Distiller(
        student, caches.dim, caches.grid, loss=cfg.loss, qsd=cfg.qsd, mask=cfg.mask, seed=cfg.seed
    )


def _job(
    cfg: Stage1Config,
    runtime: Runtime,
    plan: DeepSpeedPlan,
    source: CachedSource,
    distiller: Distiller,
    steps: int,
    identity: dict[str, Any],
) -> Job:
    def batches(start: int, stop: int) -> Iterator[Batch]:
        found = source.batches(start, stop)
        if not cfg.ledger:
            return found
        return recorded(found, cfg.out / LEDGER, runtime.rank, start, plan.accumulation)

    optim = cfg.optim
    base = optim.lr if optim.lr is not None else default_lr(plan.global_batch)
    warmup = round(optim.warmup * steps)

    def rate(step: int) -> float:
        return cosine(
            step, base=base, steps=steps, warmup=warmup, warmup_lr=optim.warmup_lr, final=optim.final_lr
        )

    return Job(
        title="stage 1",
        module=distiller,
        batches=batches,
        steps=steps,
        lr=rate,
        seed=cfg.seed,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        ema=cfg.ema,
        save_every=cfg.save_every,
        keep=cfg.keep,
        identity=identity,
    )


def _source(cfg: Stage1Config, runtime: Runtime, plan: DeepSpeedPlan, caches: Caches) -> CachedSource:
    return CachedSource(
        caches,
        global_batch=plan.global_batch,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        rank=runtime.rank,
        world=runtime.world,
        seed=cfg.seed,
        workers=cfg.workers,
        window=cfg.window,
        skip_corrupt=cfg.on_corrupt == "skip",
        pin=runtime.device.type == "cuda",
    )


def _tell_skipped(source: CachedSource, runtime: Runtime) -> None:
    """Count what ``--on-corrupt skip`` passed over, on all ranks."""
    total = int(runtime.sum(torch.tensor([len(source.skipped)])))
    if total and runtime.main:
        example = next(iter(source.skipped.values()), "on another rank")
        console.out.print(f"[yellow]{total} damaged samples were skipped[/]: {example}")


def _introduce(
    cfg: Stage1Config, plan: DeepSpeedPlan, caches: Caches, distiller: Distiller, steps: int
) -> None:
    student = distiller.student
    millions = sum(p.numel() for p in student.net.parameters()) / 1e6
    rows, columns = caches.grid
    console.out.print(
        f"[bold]stage 1[/] teacher {caches.fingerprint['model']} ({rows}x{columns} tokens of {caches.dim}) "
        f"→ student {student.spec.name} "
        f"({millions:.2f} M, {student.grid[0]}x{student.grid[1]} tokens of {student.dim})"
    )
    for cache in caches.caches:
        console.out.print(codec_line(cache.path, cache.spec.hash(), cache.spec.codec), markup=False)
    console.out.print(
        f"{caches.num_samples} images, {caches.views} views; {steps} steps of {plan.global_batch} images "
        f"(micro batch {plan.micro_batch}, accumulation {plan.accumulation}, ZeRO {plan.stage}); {cfg.out}"
    )


def _conclude(cfg: Stage1Config, seconds: float) -> None:
    console.out.print(f"[green]done[/] in {seconds:.0f} s: {cfg.out / backbone.WEIGHTS_FILE}")
    console.out.print(
        f"next: deepspeed launchers/stage2.py --ds-config {cfg.ds_config} --backbone {cfg.out} "
        f"--student {cfg.student} --train ADAPTER:PATH --val ADAPTER:PATH --out runs/stage2"
    )
