"""Stage 1: tokens of a teacher or several and students in, distilled backbones out; never a label.

The same function does both phases of the method: task-agnostic (a cache of proxy images, a student
from scratch) and domain-agnostic (a cache of source images, ``--student-weights`` the first run).

Several students learn in one pass from the same batches. Each has the run folder below OUT that it would
have alone, so one that is done is left as it is, and one that was added later is trained by itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gkd_scale import __version__, commands, config, console
from gkd_scale.cache.ledger import FOLDER as LEDGER
from gkd_scale.cache.ledger import record
from gkd_scale.cache.spec import digest
from gkd_scale.distill import heads
from gkd_scale.distill.config import Stage1Config
from gkd_scale.distill.draws import Draws, together
from gkd_scale.distill.objectives.base import Objective, TeacherSpace
from gkd_scale.distill.objectives.registry import build_objective
from gkd_scale.distill.teacher_source import OpenLabels, TeacherSource, open_source
from gkd_scale.engine import dry_run, run
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.loop import Job, TrainingPlan, fit
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.schedule import cosine
from gkd_scale.errors import ConfigError
from gkd_scale.models import backbone, layers, weights
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.masking import masked_positions
from gkd_scale.models.students import load_student, refuse_far
from gkd_scale.randomness import seed_of
from gkd_scale.types import Batch

KIND = "stage1"
DEFAULT_STEPS = 400
DEFAULT_GLOBAL_BATCH = 32


def train(
    cfg: Stage1Config,
    runtime: Runtime,
    launchers: Path,
    prepare: Callable[[Job], None] = lambda _: None,
    open_labels: OpenLabels = lambda _: None,
) -> None:
    """Run stage 1 on every rank; ``launchers`` is the folder with the DeepSpeed configs.

    ``prepare(job)`` may add to what the loop does with a student; ``job.module`` is its Objective, not yet
    sharded. ``open_labels`` opens the images of ``--live`` if they are a labelled dataset.
    """
    plan = run.deepspeed_plan(cfg.run, runtime, launchers, DEFAULT_GLOBAL_BATCH)
    students = cfg.per_student()
    # The ledger is of the whole pass, and lies in OUT itself.
    folders = [student.run.out for student in students] + [cfg.run.out] * cfg.reading.ledger
    with run.hold(runtime, folders, dry=cfg.run.dry_run):
        teacher = open_source(cfg, runtime, plan, open_labels)
        steps = _steps(cfg, teacher.images, plan.global_batch)
        tasks = [_job(student, runtime, plan, teacher, steps) for student in students]
        for student, task in zip(students, tasks, strict=True):
            if task is not None:
                runtime.on_main(partial(_begin, student, teacher, *task))
        jobs = [task[0] for task in tasks if task is not None]
        if not jobs:
            return
        start = time.monotonic()
        if runtime.main:
            _introduce(cfg, plan, teacher, jobs, steps)
        for job in jobs:
            prepare(job)
        training = _training_plan(cfg, runtime, plan, teacher, jobs, steps)
        if cfg.run.dry_run:
            data = dry_run.Data(teacher.images, teacher.source.bytes_of)
            dry_run.show(cfg, jobs, training, runtime, plan, data)
            return
        for job, result in zip(jobs, fit(jobs, training, runtime, plan), strict=True):
            state = result.state()
            runtime.on_main(partial(_finish, job, state, teacher, steps, start))
        _tell_skipped(teacher, runtime)
        if runtime.main:
            _conclude(cfg, jobs, teacher, time.monotonic() - start, launchers)


def _steps(cfg: Stage1Config, images: int, global_batch: int) -> int:
    if cfg.run.epochs is None:
        return cfg.run.steps or DEFAULT_STEPS
    return max(1, round(cfg.run.epochs * images / global_batch))


def _training_plan(
    cfg: Stage1Config,
    runtime: Runtime,
    plan: DeepSpeedPlan,
    teacher: TeacherSource,
    jobs: Sequence[Job],
    steps: int,
) -> TrainingPlan:
    """The steps of the pass, and its batches with what the objectives draw; ``--ledger`` writes them down."""
    draws = replace(together(_objective(job).draws for job in jobs), ranks=runtime.world)

    def batches(first: int, stop: int) -> Iterator[Batch]:
        stream = teacher.source.batches(first, stop, draws)
        if not cfg.reading.ledger or cfg.run.dry_run:
            return stream
        return record(stream, cfg.run.out / LEDGER, runtime.rank, first, plan.accumulation)

    return TrainingPlan(batches, steps, cfg.run, teacher.why_wait)


def default_lr(cfg: Stage1Config, global_batch: int) -> float:
    """The peak learning rate if none is given: linear in the global batch, with a floor.

    The floor is higher for a student from scratch, which has further to go: after 200 steps the demo's has
    a feature loss of 0.65 at 2.5e-4, and of 0.40 at 1e-3.
    """
    return max(5e-4 * global_batch / 512, 2.5e-4 if cfg.student.weights else 1e-3)


def _job(
    cfg: Stage1Config, runtime: Runtime, plan: DeepSpeedPlan, teacher: TeacherSource, steps: int
) -> tuple[Job, list[Conditioning]] | None:
    """The training of the one student of ``cfg``, and its conditionings; None if its run is already done.

    Writes nothing.
    """
    is_done = runtime.on_main(lambda: run.is_done(cfg.run.out, KIND))
    teacher_norms = runtime.on_main(lambda: _conditionings(cfg, teacher))
    objective = _build(cfg, teacher, teacher_norms)
    if not is_done and not run.has_checkpoint(cfg.run.out):
        _require_masked(objective.draws, plan.global_batch)
    continued = heads.resume(
        objective,
        cfg.student.weights,
        {item.name: conditioning for item, conditioning in zip(teacher.teachers, teacher_norms, strict=True)},
        lambda line: console.say(f"{cfg.run.out}: {line}") if runtime.main and not is_done else None,
    )
    identity = run.identity(
        cfg,
        initial_weights=weights.fingerprint(objective if continued else objective.student.net),
        **teacher.identity,
        conditioning=_one_or_all([item.digest() for item in teacher_norms]),
        steps=steps,
        global_batch=plan.global_batch,
    )
    if is_done:
        run.require_same(cfg.run.out, identity)
    if runtime.main and (is_done or continued):
        console.say(
            f"{cfg.run.out} is already complete: {cfg.run.out / backbone.WEIGHTS_FILE}"
            if is_done
            else f"{cfg.run.out}: the QSD heads go on from {cfg.student.weights}"
        )
    return None if is_done else (_training(cfg, objective, teacher, identity), teacher_norms)


def _one_or_all(values: list[str]) -> str | list[str]:
    """The value of a single teacher, or the list of the values of several."""
    return values[0] if len(values) == 1 else values


def _require_masked(draws: Draws, global_batch: int) -> None:
    """ConfigError if images should be masked and the share of the global batch is less than one image."""
    if (
        draws.tokens
        and draws.probability > 0
        and not masked_positions(range(global_batch), draws.probability)
    ):
        raise ConfigError(
            f"--mask.probability {draws.probability:g} of a global batch of {global_batch} masks no image",
            f"give --global-batch {math.ceil(1 / draws.probability)} or more, or --loss.mask-weight 0",
        )


def _training(
    cfg: Stage1Config, objective: Objective, teacher: TeacherSource, identity: dict[str, Any]
) -> Job:
    """What the loop needs to train ``objective``; ``identity`` says the steps and the global batch."""
    optim, steps, net = cfg.optim, identity["steps"], objective.student.net
    base = optim.lr if optim.lr is not None else default_lr(cfg, identity["global_batch"])
    warmup = round(optim.warmup * steps)
    scales = layers.lr_scales(net, optim.layer_decay)
    return Job(
        title=objective.student.spec.name,
        module=objective,
        lr=lambda step: cosine(
            step, base=base, steps=steps, warmup=warmup, warmup_lr=optim.warmup_lr, final=optim.final_lr
        ),
        out=cfg.run.out,
        optim=optim,
        ema=cfg.ema,
        lr_scales={objective.prefix + name: scale for name, scale in scales.items()},
        no_decay=frozenset(objective.prefix + name for name in layers.no_decay(net)),
        identity=identity,
        config=config.to_dict(cfg),
        tags={
            "kind": KIND,
            "student": objective.student.spec.name,
            "teacher": teacher.names,
            "gkd_scale": __version__,
        },
    )


def _begin(cfg: Stage1Config, teacher: TeacherSource, job: Job, teacher_norms: list[Conditioning]) -> None:
    """Write what the run is, after all that can be refused was checked. Rank 0."""
    if cfg.run.dry_run:
        run.require_begun_alike(job.out, cfg, job.identity)
        return
    run.begin(job.out, cfg, KIND, job.identity)
    conditionings.save(teacher_norms, job.out, conditionings.key(cfg.conditioning, **teacher.identity))


def _conditionings(cfg: Stage1Config, teacher: TeacherSource) -> list[Conditioning]:
    """The conditioning of each teacher's tokens, from their moments; or what the run began with. Rank 0."""

    def fit(number: int) -> Conditioning:
        tokens = teacher.source.spread(conditionings.SAMPLES, number)
        return conditionings.fit(tokens, cfg.conditioning.norm, cfg.conditioning.power)

    of = conditionings.key(cfg.conditioning, **teacher.identity)
    return [
        conditionings.load_or_make(cfg.run.out, of, partial(fit, number), prefix)
        for number, prefix in enumerate(conditionings.prefixes(len(teacher.teachers)))
    ]


def _build(cfg: Stage1Config, teacher: TeacherSource, teacher_norms: list[Conditioning]) -> Objective:
    torch.manual_seed(seed_of("init", cfg.run.seed))
    source = teacher.source
    (name,) = cfg.student.names
    first, *others = (facts.grid for facts in teacher.teachers)
    student = load_student(
        str(name),
        source.image_size,
        first,
        weights=cfg.student.weights,
        args=cfg.student.args,
        drop_path=cfg.student.drop_path,
        resize=cfg.student.resize,
    )
    for grid in others:
        refuse_far(str(name), source.image_size, student.grid, grid)
    if cfg.grad_checkpointing:
        layers.checkpoint_activations(student.net, str(name))
    spaces = [
        TeacherSpace(facts.dim, facts.grid, conditioning, facts.name, facts.weight)
        for facts, conditioning in zip(teacher.teachers, teacher_norms, strict=True)
    ]
    sections = {"loss": cfg.loss, "qsd": cfg.qsd, "mask": cfg.mask}
    args = {**sections, "jitter": cfg.student.jitter, "seed": cfg.run.seed}
    objective = build_objective(cfg.objective, student, spaces, args)
    if cfg.compile:
        objective.compile_losses()
    return objective


def _objective(job: Job) -> Objective:
    assert isinstance(job.module, Objective)
    return job.module


def _finish(
    job: Job, state: dict[str, torch.Tensor], teacher: TeacherSource, steps: int, start: float
) -> None:
    """Export a student and say that its run is done. Rank 0."""
    facts: dict[str, Any] = {
        "image_size": list(teacher.source.image_size),
        "teacher": _one_or_all([item.name for item in teacher.teachers]),
        "teacher_sha256": _one_or_all([item.fingerprint["weights_sha256"] for item in teacher.teachers]),
        "steps": steps,
    }
    if "teachers" in teacher.identity:
        facts["teacher_fingerprint"] = [digest(item.fingerprint) for item in teacher.teachers]
    objective = _objective(job)
    net, rest = objective.split(state)
    heads.save(job.out, rest)
    backbone.export(job.out, objective.student.spec, net, **facts)
    seconds = round(time.monotonic() - start, 1)
    run.finish(job.out, KIND, job.identity, seconds=seconds, steps=steps)


def _tell_skipped(teacher: TeacherSource, runtime: Runtime) -> None:
    """Count what ``--on-corrupt skip`` passed over, on all ranks."""
    total = int(runtime.sum(torch.tensor([len(teacher.skipped)])))
    if total and runtime.main:
        example = next(iter(teacher.skipped.values()), "on another rank")
        console.out.print(f"[yellow]{total} damaged samples were skipped[/]: {console.escape(example)}")


def _introduce(
    cfg: Stage1Config, plan: DeepSpeedPlan, teacher: TeacherSource, jobs: list[Job], steps: int
) -> None:
    rows = max(facts.grid[0] for facts in teacher.teachers)
    lead = "[bold]stage 1[/] teacher"
    for facts in teacher.teachers:
        console.out.print(f"{lead} {facts.name} ({facts.grid[0]}x{facts.grid[1]} tokens of {facts.dim})")
        lead = "        and"
    for job in jobs:
        student = _objective(job).student
        millions = sum(p.numel() for p in student.net.parameters()) / 1e6
        console.say(
            f"→ student {student.spec.name} "
            f"({millions:.2f} M, {student.grid[0]}x{student.grid[1]} tokens of {student.dim}); {job.out}"
        )
        if student.grid[0] < rows:
            stride = round(teacher.source.image_size[0] / rows)
            console.out.print(
                "  its tokens are coarser than the teacher's and are resampled: a smaller patch size, or "
                f"--student-args output_stride={stride} where timm has it, learns finer detail"
            )
    epochs = steps * plan.global_batch / teacher.images
    unread = f"{epochs:.1f} epochs read {math.ceil(epochs)} of the {teacher.views} views of each image"
    console.say(
        *teacher.about,
        *([unread] if math.ceil(epochs) < teacher.views else ()),
        f"{steps} steps of {plan.global_batch} images ({plan.summary()}); {cfg.run.out}",
        *(f"{plan.path.name}: {note}" for note in plan.notes),
    )


def _conclude(
    cfg: Stage1Config, jobs: list[Job], teacher: TeacherSource, seconds: float, launchers: Path
) -> None:
    paths = ", ".join(str(job.out / backbone.WEIGHTS_FILE) for job in jobs)
    console.out.print(f"[green]done[/] in {seconds:.0f} s: {console.escape(paths)}")
    lead = "next: "
    for job in jobs:
        console.paste(lead, *_stage2(cfg, job, teacher, launchers))
        lead = "      "
    console.out.print("      on the embedded scenes; on yours with --train ADAPTER:PATH --val ADAPTER:PATH")


def _stage2(cfg: Stage1Config, job: Job, teacher: TeacherSource, launchers: Path) -> list[object]:
    """The command of stage 2 on a job's export, which holds its own name and arguments."""
    student = _objective(job).student
    stride = backbone.Backbone(student.net, student.spec).stride
    size = "x".join(str(max(1, round(side / stride)) * stride) for side in teacher.source.image_size)
    out = job.out.with_name(f"{job.out.name}-stage2") if job.out.name else job.out / "stage2"
    return [
        *("deepspeed", commands.script(launchers, "stage2.py"), "--ds-config", cfg.run.ds_config),
        *("--backbone", job.out, "--image-size", size, "--out", out),
    ]
