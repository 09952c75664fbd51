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

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.engine import checkpoint, ds_check, stop, zero
from gkd_scale.engine.batch_norm import batch_norms, kept_statistics, share_statistics
from gkd_scale.engine.config import OptimConfig, RunConfig
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.ema import Ema
from gkd_scale.engine.feed import feed
from gkd_scale.engine.health import DataWaitMonitor, HealthCheck
from gkd_scale.engine.loggers import RunFacts
from gkd_scale.engine.metrics import StepResult, StepRow, Window, steps_of_window
from gkd_scale.engine.optimizers import registry as optimizers
from gkd_scale.engine.optimizers.lamb import Lamb
from gkd_scale.engine.optimizers.muon import Muon
from gkd_scale.engine.run import CHECKPOINTS
from gkd_scale.engine.runlog import RunLog
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.saver import Saver
from gkd_scale.engine.watchdog import COMPUTING, READING, Watchdog
from gkd_scale.errors import GkdError
from gkd_scale.memory import collector_paused
from gkd_scale.randomness import seed_of


@dataclass(frozen=True)
class Hook:
    """``call(step, module)`` on every rank after each ``every`` steps and after the last.

    If there is a moving average, the module has the averaged weights: what a run would export at that step.
    The loop logs what the hook returns with the step.
    """

    every: int
    call: Callable[[int, nn.Module], dict[str, float]]


@dataclass
class Job:
    """One model to train. ``module(batch)`` returns losses by name; the loop minimises ``"loss"``.

    Metrics, logs and checkpoints go to ``out``. ``lr`` is a function of the step (from 0). Parameters
    named in ``lr_scales`` learn at that multiple of it. Those in ``no_decay``, norms, biases, tokens
    and positions have no weight decay. If there is ``on_save``, the loop waits until the checkpoint of a
    step is whole, and calls ``on_save(step)`` on every rank. ``identity`` (JSON types) must be the same when
    the run is resumed. Loggers get ``config`` (nested plain types), ``tags``, and at the end what ``final()``
    returns on rank 0.
    """

    title: str
    module: nn.Module
    lr: Callable[[int], float]
    out: Path
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: float = 0.0
    lr_scales: dict[str, float] = field(default_factory=dict)
    no_decay: frozenset[str] = frozenset()
    hooks: list[Hook] = field(default_factory=list)
    on_save: Callable[[int], None] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    final: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True)
class TrainingPlan:
    """What all jobs of a pass share: the batches, how many steps, and the options of a run.

    ``batches(start, stop)`` yields this rank's micro batches of steps [start, stop), ``accumulation`` a
    step. ``why_wait`` returns why batches may be late.
    """

    batches: Callable[[int, int], Iterator[Any]]
    steps: int
    run: RunConfig
    why_wait: Callable[[], str] = lambda: "the loader is slower than the model"


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
        self.health = HealthCheck()
        self.sums: dict[str, Tensor] = {}
        self.norm: Tensor | float = math.nan

    def begin(self, step: int) -> None:
        """Set the learning rates of step ``step`` (from 0)."""
        rate = self.job.lr(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.sums, self.norm = {}, math.nan

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

    def end(self, number: int) -> StepResult:
        """Average the weights after step ``number`` (from 1). Returns the step's metrics, not fetched.

        Ranks also average BatchNorm's running statistics, so that all of them hold one model. Collective.
        """
        if self.runtime.world > 1:
            share_statistics(self.norms, lambda tensor: self.runtime.sum(tensor) / self.runtime.world)
        if self.ema:
            self.ema.update(number)
        norm = self.engine.get_global_grad_norm()
        return StepResult(self.sums, self.job.lr(number - 1), self.norm if norm is None else norm)

    def due(self, number: int, *, last: bool) -> list[Hook]:
        """The hooks to call after step ``number``."""
        return [hook for hook in self.job.hooks if last or number % hook.every == 0]

    def run_hooks(self, number: int, *, last: bool) -> dict[str, float]:
        """Call the hooks that are due after step ``number``; all that they return."""
        results: dict[str, float] = {}
        due = self.due(number, last=last)
        with self.ema.apply() if self.ema and due else nullcontext():
            for hook in due:
                results.update(hook.call(number, self.module))
        return results

    def state(self, module: nn.Module | None = None) -> dict[str, Tensor]:
        """Whole tensors of ``module`` (default: the whole trained one), averaged if there is an average.

        Trained parameters are float32, also in a run in half precision. Collective under ZeRO.
        """
        part = self.module if module is None else module
        with self.ema.apply() if self.ema else nullcontext():
            return zero.full_state(part)


def fit(
    jobs: Sequence[Job], plan: TrainingPlan, runtime: Runtime, deepspeed: DeepSpeedPlan
) -> list[Training]:
    """Train ``jobs`` in one pass to the last step, from the newest checkpoint that all of them have.

    Writes ``metrics.jsonl``, ``checkpoints`` and the loggers' files to each job's folder. Raises
    :class:`stop.Stopped`, with checkpoints written, if a signal asks it to stop before the last step.
    """
    trainings = [Training(job, runtime, deepspeed) for job in jobs]
    start = _resume(trainings, runtime)
    runs = [RunFacts(job.title, job.out, job.config, job.tags) for job in jobs]
    watchdog = Watchdog(runtime, plan.run.timeout_minutes, jobs[0].out)
    with (
        RunLog(runs, start, plan.steps, runtime.main, plan.run.loggers()) as log,
        stop.requests() as stop_requested,
        watchdog,
        Saver(runtime, plan.run.keep, plan.run.keep_every) as saver,
    ):
        if start:
            log.note(f"going on from step {start} of {plan.steps}")
        batches = feed(plan.batches(start, plan.steps), runtime.device)
        monitor = DataWaitMonitor(plan.why_wait)
        window = Window(runtime, deepspeed.global_batch, deepspeed.accumulation)
        window_steps = steps_of_window(runtime.device)
        for step in range(start, plan.steps):
            window.begin_step()
            wait = _step(trainings, batches, plan.run.seed, runtime, deepspeed, step, watchdog)
            number = step + 1
            last, save_due = number == plan.steps, number % plan.run.save_every == 0
            window.end_step([training.end(number) for training in trainings], wait)
            hooks_due = any(training.due(number, last=last) for training in trainings)
            if not (last or save_due or hooks_due or number % window_steps == 0):
                continue
            rows, stopping = window.fetch(stop_requested() or saver.failed)
            watchdog.rest()
            _record(rows, number, trainings, log, last=last)
            for _ in rows:
                if remark := monitor.step(*window.pace):
                    log.note(f"[yellow]{remark}[/]")
            if last or stopping or save_due:
                _save(trainings, saver, runtime, number)
            if last or stopping:
                saver.wait()
            if stopping and not last:
                raise stop.Stopped(number, plan.steps)
        if runtime.main:
            log.finish([job.final() for job in jobs])
    return trainings


def _record(
    window: list[list[StepRow]], number: int, trainings: Sequence[Training], log: RunLog, *, last: bool
) -> None:
    """Check and log the rows of the steps up to ``number``, after which hooks are due. Collective."""
    for step, rows in enumerate(window, number - len(window) + 1):
        metrics = []
        for training, row in zip(trainings, rows, strict=True):
            training.health.check(row.losses, step)
            hook_results = training.run_hooks(number, last=last) if step == number else {}
            metrics.append({**row.losses, **row.facts, **hook_results})
        log.step(step, metrics)


def _resume(trainings: Sequence[Training], runtime: Runtime) -> int:
    """Restore the newest step that every training has a checkpoint of. Returns it, or 0 for none."""
    folders = [training.folder for training in trainings]
    runtime.on_main(lambda: checkpoint.remove_torn(folders))
    start = runtime.on_main(lambda: checkpoint.newest(folders))
    for training in trainings if start else ():
        checkpoint.load(training.folder, start, training.engine, training.ema, training.job.identity)
    return start


def _save(trainings: Sequence[Training], saver: Saver, runtime: Runtime, number: int) -> None:
    """Take the state of all trainings and begin to write it; the earlier checkpoints are whole by then."""
    saver.wait()
    saver.write(
        [
            (item.folder, checkpoint.take(number, item.engine, item.ema, runtime, item.job.identity))
            for item in trainings
        ]
    )
    callbacks = [item.job.on_save for item in trainings if item.job.on_save is not None]
    if callbacks:
        saver.wait()
    for callback in callbacks:
        callback(number)


def _step(
    trainings: Sequence[Training],
    batches: Iterator[Any],
    seed: int,
    runtime: Runtime,
    deepspeed: DeepSpeedPlan,
    step: int,
    watchdog: Watchdog,
) -> float:
    """One optimizer step of every training on the same batches. Returns the seconds of waiting for data."""
    wait = 0.0
    for training in trainings:
        training.begin(step)
    for micro in range(deepspeed.accumulation):
        watchdog.at(step + 1, READING)
        began = time.perf_counter()
        batch = _next(batches, runtime.rank)
        wait += time.perf_counter() - began
        watchdog.at(step + 1, COMPUTING)
        micro_seed = seed_of("step", seed, step, micro, runtime.rank)
        unknown_norm = deepspeed.stage == 0 and micro == deepspeed.accumulation - 1
        for training in trainings:
            training.micro_step(batch, micro_seed, gradient_norm=unknown_norm)
    return wait


def _next(batches: Iterator[Any], rank: int) -> Any:
    """The next batch. An error of the loader gets this rank's number, since only this rank has it."""
    try:
        return next(batches)
    except GkdError as error:
        error.on_rank = rank
        raise


def _gradient_norm(module: nn.Module) -> Tensor | float:
    """The norm of all gradients, before clipping; DeepSpeed gives none without ZeRO and clipping."""
    norms = [p.grad.detach().float().norm() for p in module.parameters() if p.grad is not None]
    return torch.stack(norms).norm() if norms else 0.0


@collector_paused()
def _initialize(job: Job, plan: DeepSpeedPlan, runtime: Runtime) -> Any:
    """DeepSpeed's engine around the job's module, on this rank's device."""
    import deepspeed

    groups = optimizers.groups(
        job.module,
        weight_decay=job.optim.weight_decay,
        lr_scales=job.lr_scales,
        no_decay=job.no_decay,
        matrices=job.optim.name == "muon",
    )
    fused = runtime.device.type == "cuda"
    optimizer = optimizers.build(job.optim.name, groups, lr=job.lr(0), betas=job.optim.betas, fused=fused)
    with warnings.catch_warnings(), ds_check.translate_errors(plan.path):
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(
            model=job.module.to(runtime.device),
            optimizer=optimizer,
            config=dict(plan.json),
            dist_init_required=False,
        )
    if isinstance(optimizer, (Lamb, Muon)):
        optimizer.layouts = zero.layouts(engine)
    return engine
