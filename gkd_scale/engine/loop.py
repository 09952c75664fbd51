"""The loop: any module that turns a batch into a dict of losses, trained under DeepSpeed.

A step is: set the learning rate (a function of the step), seed torch (a function of seed, step, rank),
run ``accumulation`` micro batches forward and backward, let DeepSpeed step, average. Nothing else
carries state from step to step but the parameters, the moments and the moving average, which is what
a checkpoint holds. So the same command after a kill gives the same run.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.engine import checkpoint, weights
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.ema import Ema
from gkd_scale.engine.runlog import RunLog
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import GkdError, UserError
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
    """What to train. ``module(batch)`` returns losses by name; ``"loss"`` is minimised.

    ``batches(start, stop)`` yields this rank's micro batches of steps [start, stop), ``accumulation`` a
    step. ``lr`` is a function of the step (from 0). ``saved(step)`` is called on every rank once the
    checkpoint of ``step`` is whole. ``identity`` is what must not change when the run is resumed; JSON types.
    """

    title: str
    module: nn.Module
    batches: Callable[[int, int], Iterator[Any]]
    steps: int
    lr: Callable[[int], float]
    seed: int
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.0
    save_every: int = 500
    keep: int = 2
    hooks: list[Hook] = field(default_factory=list)
    saved: Callable[[int], None] = lambda _: None
    identity: dict[str, Any] = field(default_factory=dict)


class Trained:
    """What :func:`fit` leaves: the module, and its averaged weights where there is a moving average."""

    def __init__(self, engine: Any, ema: Ema | None) -> None:
        self.module: nn.Module = engine.module
        self._ema = ema

    def state(self, module: nn.Module | None = None) -> dict[str, Tensor]:
        """Whole tensors of ``module`` (a part of the trained one), averaged if there is an average.

        Collective under ZeRO-3.
        """
        part = self.module if module is None else module
        if self._ema is None:
            return weights.full_state(part)
        with self._ema.applied():
            return weights.full_state(part)


def fit(job: Job, runtime: Runtime, plan: DeepSpeedPlan, out: Path) -> Trained:
    """Train ``job`` to its last step, going on from the newest checkpoint under ``out``.

    Writes ``out/metrics.jsonl``, ``out/tensorboard`` and ``out/checkpoints``.
    """
    engine = _initialize(job, plan, runtime)
    ema = Ema(engine.module, job.ema) if job.ema else None
    folder = out / "checkpoints"
    start = checkpoint.load(folder, engine, ema, runtime, job.identity)
    log = _open_log(out, job, start) if runtime.main else None
    try:
        if log and start:
            log.note(f"going on from step {start} of {job.steps}")
        _run(job, runtime, plan, engine, ema, folder, start, log)
    finally:
        if log:
            log.close()
    return Trained(engine, ema)


def _open_log(out: Path, job: Job, start: int) -> RunLog:
    out.mkdir(parents=True, exist_ok=True)
    return RunLog(out, job.title, start, job.steps)


def _run(
    job: Job,
    runtime: Runtime,
    plan: DeepSpeedPlan,
    engine: Any,
    ema: Ema | None,
    folder: Path,
    start: int,
    log: RunLog | None,
) -> None:
    batches = job.batches(start, job.steps)
    for step in range(start, job.steps):
        began = time.perf_counter()
        rate = job.lr(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        losses, norm, waited = _step(job, runtime, plan, engine, batches, step)
        done = step + 1
        if ema:
            ema.update(done)
        means = _mean_losses(losses, runtime, plan)
        _check_finite(means, done)
        seconds = time.perf_counter() - began
        metrics: dict[str, Any] = {
            **means,
            "lr": rate,
            "grad_norm": norm,
            "images_per_s": round(plan.global_batch / seconds, 2),
            "data_wait": round(waited / seconds, 4),
        }
        last = done == job.steps
        due = [hook for hook in job.hooks if last or done % hook.every == 0]
        with ema.applied() if ema and due else nullcontext():
            for hook in due:
                metrics.update(hook.call(done, engine.module))
        if log:
            log.step(done, metrics)
        if last or done % job.save_every == 0:
            checkpoint.save(folder, done, engine, ema, runtime, job.identity, job.keep)
            job.saved(done)


def _step(
    job: Job, runtime: Runtime, plan: DeepSpeedPlan, engine: Any, batches: Iterator[Any], step: int
) -> tuple[dict[str, Tensor], float | None, float]:
    """One optimizer step: summed losses of this rank, gradient norm, seconds spent waiting for data."""
    sums: dict[str, Tensor] = {}
    norm: float | None = None
    waited = 0.0
    for micro in range(plan.accumulation):
        asked = time.perf_counter()
        batch = _next(batches)
        waited += time.perf_counter() - asked
        torch.manual_seed(seed_of("step", job.seed, step, micro, runtime.rank))
        losses = engine(batch)
        engine.backward(losses["loss"])
        if plan.stage == 0 and micro == plan.accumulation - 1:
            norm = _gradient_norm(engine.module)
        engine.step()
        for name, value in losses.items():
            value = value.detach().float()
            sums[name] = sums[name] + value if name in sums else value
    known = engine.get_global_grad_norm()
    return sums, float(known) if known is not None else norm, waited


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


def _mean_losses(sums: dict[str, Tensor], runtime: Runtime, plan: DeepSpeedPlan) -> dict[str, float]:
    """Means over the global batch: all micro batches are of one size."""
    total = runtime.sum(torch.stack(list(sums.values()))) / (runtime.world * plan.accumulation)
    return dict(zip(sums, total.tolist(), strict=True))


def _check_finite(means: dict[str, float], step: int) -> None:
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"{', '.join(bad)} is not finite at step {step}",
            "lower --lr, lengthen the warmup, or set gradient_clipping in the DeepSpeed config; "
            "the last checkpoint is kept",
        )


def _initialize(job: Job, plan: DeepSpeedPlan, runtime: Runtime) -> Any:
    import deepspeed

    optimizer = torch.optim.AdamW(_groups(job.module, job.weight_decay), lr=job.lr(0), betas=job.betas)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine, *_ = deepspeed.initialize(
            model=job.module.to(runtime.device),
            optimizer=optimizer,
            config=dict(plan.json),
            dist_init_required=False,
        )
    return engine


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: weights that decay, and norms, biases, tokens and embeddings that do not."""
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    embeddings = {id(each.weight) for each in module.modules() if isinstance(each, nn.Embedding)}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(("token", "pos_embed", "level_embed"))
            (rest if plain or id(parameter) in embeddings else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
