"""The loop: modules that turn a batch into a dict of losses, trained under DeepSpeed.

A step is: set the learning rate (a function of the step), seed torch (a function of seed, step, rank),
run ``accumulation`` micro batches forward and backward, let DeepSpeed step, average. Nothing else
carries state from step to step but the parameters, the moments and the moving average, which is what
a checkpoint holds. So the same command after a kill gives the same run.

Several jobs may share a pass: each batch is read once and goes to every job in turn. A job has an
engine, an optimizer, checkpoints and metrics of its own, and torch is seeded anew before each, so its
result is the one that it would have alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.engine import checkpoint, loggers, stop, weights
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.ema import Ema
from gkd_scale.engine.feed import feed
from gkd_scale.engine.health import Vitals, Waits
from gkd_scale.engine.loggers import Tracked
from gkd_scale.engine.run import CHECKPOINTS
from gkd_scale.engine.runlog import RunLog
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import GkdError
from gkd_scale.models.layers import batch_norms, kept_statistics, share_statistics
from gkd_scale.randomness import seed_of


@dataclass(frozen=True)
class Hook:
    """``call(step, module)`` on every rank after each ``every`` steps and after the last.

    It sees the averaged weights where there is a moving average: what a run would export at that step.
    What it returns is logged with the step.
    """

    every: int
    call: Callable[[int, nn.Module], dict[str, float]]


@dataclass
class Job:
    """One model to train. ``module(batch)`` returns losses by name; ``"loss"`` is minimised.

    Metrics, logs and checkpoints go to ``out``. ``lr`` is a function of the step (from 0). Parameters
    named in ``lr_scales`` learn at that multiple of it; those in ``no_decay`` have no weight decay, nor
    have norms, biases, tokens and positions. ``saved(step)`` is called on every rank once the checkpoint
    of ``step`` is whole. ``identity`` is what must not change when the run is resumed; JSON types.
    Loggers get ``config`` (nested plain types), ``tags``, and at the end what ``final()`` returns on rank 0.
    """

    title: str
    module: nn.Module
    lr: Callable[[int], float]
    out: Path
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.0
    lr_scales: dict[str, float] = field(default_factory=dict)
    no_decay: frozenset[str] = frozenset()
    hooks: list[Hook] = field(default_factory=list)
    saved: Callable[[int], None] = lambda _: None
    identity: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    final: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True)
class Course:
    """What the jobs of a pass have in common.

    ``batches(start, stop)`` yields this rank's micro batches of steps [start, stop), ``accumulation`` a
    step. Every ``save_every`` steps and at the end there is a checkpoint; the last ``keep`` stay, and
    those of every ``keep_every``-th step. ``why_wait`` says why batches may be late. ``log`` names the
    loggers of every job.
    """

    batches: Callable[[int, int], Iterator[Any]]
    steps: int
    seed: int
    save_every: int = 500
    keep: int = 2
    keep_every: int | None = None
    why_wait: Callable[[], str] = lambda: "the loader is slower than the model"
    log: Sequence[str] = loggers.DEFAULT


class Training:
    """A job under DeepSpeed: its engine and its moving average."""

    def __init__(self, job: Job, runtime: Runtime, plan: DeepSpeedPlan) -> None:
        self.job = job
        self.engine = _initialize(job, plan, runtime)
        self.module: nn.Module = self.engine.module
        self.ema = Ema(self.module, job.ema) if job.ema else None
        self.runtime = runtime
        self.norms = batch_norms(self.module)
        self.folder = job.out / CHECKPOINTS
        self.vitals = Vitals()
        self.sums: dict[str, Tensor] = {}
        self.norm: float | None = None

    def begin(self, step: int) -> None:
        """Set the learning rates of step ``step`` (from 0)."""
        rate = self.job.lr(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.sums, self.norm = {}, None

    def micro_step(self, batch: Any, seed: int, *, gradient_norm: bool) -> None:
        """Forward and backward of one micro batch; the optimizer steps after the last of a step."""
        torch.manual_seed(seed)
        losses = self.engine(batch)
        with kept_statistics(self.norms):  # checkpointed activations are computed again in here
            self.engine.backward(losses["loss"])
        if gradient_norm:
            self.norm = _gradient_norm(self.module)
        self.engine.step()
        for name, value in losses.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def end(self, done: int) -> dict[str, Any]:
        """Average the weights of step number ``done`` (from 1); the learning rate and gradient norm.

        Ranks average BatchNorm's running statistics too: all of them hold one model. Collective.
        """
        if self.runtime.world > 1:
            share_statistics(self.norms, lambda mine: self.runtime.sum(mine) / self.runtime.world)
        if self.ema:
            self.ema.update(done)
        known = self.engine.get_global_grad_norm()
        norm = float(known) if known is not None else self.norm
        return {"lr": self.job.lr(done - 1), "grad_norm": norm}

    def run_hooks(self, done: int, *, last: bool) -> dict[str, float]:
        """What the hooks that are due after step number ``done`` return."""
        found: dict[str, float] = {}
        due = [hook for hook in self.job.hooks if last or done % hook.every == 0]
        with self.ema.applied() if self.ema and due else nullcontext():
            for hook in due:
                found.update(hook.call(done, self.module))
        return found

    def state(self, module: nn.Module | None = None) -> dict[str, Tensor]:
        """Whole tensors of ``module`` (a part of the trained one), averaged if there is an average.

        Collective under ZeRO-3.
        """
        part = self.module if module is None else module
        with self.ema.applied() if self.ema else nullcontext():
            return weights.full_state(part)


def fit(jobs: Sequence[Job], course: Course, runtime: Runtime, plan: DeepSpeedPlan) -> list[Training]:
    """Train ``jobs`` in one pass to the last step, going on from the newest checkpoint that all have.

    Writes ``metrics.jsonl`` and ``checkpoints`` to each job's folder, and what its loggers keep there. Raises
    :class:`stop.Stopped`, with checkpoints written, where it is asked to stop before the last step.
    """
    trainings = [Training(job, runtime, plan) for job in jobs]
    start = _resume(trainings, runtime)
    runs = [Tracked(job.title, job.out, job.config, job.tags) for job in jobs]
    with RunLog(runs, start, course.steps, runtime.main, course.log) as log, stop.requests() as asked:
        if start:
            log.note(f"going on from step {start} of {course.steps}")
        batches = feed(course.batches(start, course.steps), runtime.device)
        waits = Waits(course.why_wait)
        for step in range(start, course.steps):
            began = time.perf_counter()
            waited = _step(trainings, batches, course, runtime, plan, step)
            done = step + 1
            last = done == course.steps
            facts = [training.end(done) for training in trainings]
            means, stopping = _agree(trainings, asked(), runtime, plan)
            seconds = time.perf_counter() - began
            pace = {
                "images_per_s": round(plan.global_batch / seconds, 2),
                "data_wait": round(waited / seconds, 4),
            }
            rows = []
            for training, mean, fact in zip(trainings, means, facts, strict=True):
                training.vitals.check(mean, done)
                rows.append({**mean, **fact, **pace, **training.run_hooks(done, last=last)})
            log.step(done, rows)
            if remark := waits.step(waited, seconds):
                log.note(f"[yellow]{remark}[/]")
            if last or stopping or done % course.save_every == 0:
                _save(trainings, course, runtime, done)
            if stopping and not last:
                raise stop.Stopped(done, course.steps)
        if runtime.main:
            log.finish([job.final() for job in jobs])
    return trainings


def _resume(trainings: Sequence[Training], runtime: Runtime) -> int:
    """Restore the newest step that every training has a checkpoint of; 0 where there is none."""
    start = runtime.on_main(lambda: checkpoint.newest([training.folder for training in trainings]))
    for training in trainings if start else ():
        checkpoint.load(training.folder, start, training.engine, training.ema, training.job.identity)
    return start


def _save(trainings: Sequence[Training], course: Course, runtime: Runtime, done: int) -> None:
    """Checkpoints of all trainings; only then are older ones removed, so that one step is whole in all."""
    for each in trainings:
        checkpoint.save(each.folder, done, each.engine, each.ema, runtime, each.job.identity)
    for each in trainings:
        runtime.on_main(partial(checkpoint.prune, each.folder, course.keep, course.keep_every))
        each.job.saved(done)


def _step(
    trainings: Sequence[Training],
    batches: Iterator[Any],
    course: Course,
    runtime: Runtime,
    plan: DeepSpeedPlan,
    step: int,
) -> float:
    """One optimizer step of every training on the same batches; seconds spent waiting for data."""
    waited = 0.0
    for training in trainings:
        training.begin(step)
    for micro in range(plan.accumulation):
        asked = time.perf_counter()
        batch = _next(batches)
        waited += time.perf_counter() - asked
        seed = seed_of("step", course.seed, step, micro, runtime.rank)
        unknown_norm = plan.stage == 0 and micro == plan.accumulation - 1
        for training in trainings:
            training.micro_step(batch, seed, gradient_norm=unknown_norm)
    return waited


def _next(batches: Iterator[Any]) -> Any:
    """The next batch; an error of the loader is this rank's own, and says so."""
    try:
        return next(batches)
    except GkdError as error:
        error.local = True  # type: ignore[attr-defined]
        raise


def _gradient_norm(module: nn.Module) -> float:
    """The norm of all gradients, before clipping; DeepSpeed gives none without ZeRO and clipping."""
    norms = [p.grad.detach().float().norm() for p in module.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _agree(
    trainings: Sequence[Training], asked: bool, runtime: Runtime, plan: DeepSpeedPlan
) -> tuple[list[dict[str, float]], bool]:
    """Each training's means over the global batch, and whether any rank was asked to stop: one reduction.

    All micro batches are of one size.
    """
    mine = [value for training in trainings for value in training.sums.values()]
    *totals, requests = runtime.sum(torch.stack([*mine, torch.full_like(mine[0], asked)])).tolist()
    parts = iter(totals)
    count = runtime.world * plan.accumulation
    return [{name: next(parts) / count for name in each.sums} for each in trainings], requests > 0


def _initialize(job: Job, plan: DeepSpeedPlan, runtime: Runtime) -> Any:
    import deepspeed

    optimizer = torch.optim.AdamW(_groups(job), lr=job.lr(0), betas=job.betas)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(
            model=job.module.to(runtime.device),
            optimizer=optimizer,
            config=dict(plan.json),
            dist_init_required=False,
        )
    return engine


def _groups(job: Job) -> list[dict[str, Any]]:
    """Parameter groups: what decays and what does not, for each multiple of the learning rate."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    embeddings = {id(each.weight) for each in job.module.modules() if isinstance(each, nn.Embedding)}
    for name, parameter in job.module.named_parameters():
        if parameter.requires_grad:
            token = parameter.ndim <= 1 or name.endswith(("token", "pos_embed", "level_embed"))
            plain = token or id(parameter) in embeddings or name in job.no_decay
            groups.setdefault((job.lr_scales.get(name, 1.0), not plain), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": job.weight_decay if decays else 0.0}
        for (scale, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
