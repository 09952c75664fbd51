"""``--dry-run``: measures a few steps of one rank and prints what a run would take. Writes nothing.

The caller has made all checks of a run. The steps here are those of the loop, in DeepSpeed's engine. With
``--world N`` this process is rank 0 of N in PyTorch's fake process group: DeepSpeed shards for N ranks, the
loader reads rank 0's share, and collectives return at once. The resulting weights mean nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from rich.table import Table

from gkd_scale import config, console
from gkd_scale.engine import checkpoint, ds_config
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.feed import feed
from gkd_scale.engine.loop import Job, Training, TrainingPlan
from gkd_scale.engine.memory_use import MemoryUse, memory_use
from gkd_scale.engine.run import CHECKPOINTS, leaves_of
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.zero_memory import zero_memory
from gkd_scale.errors import UserError

STEPS = 3
"""Steps that are timed, after one to warm up and one whose memory is measured."""
NODE = 8
"""Ranks of a node, for the rate at which a node reads."""


@dataclass(frozen=True)
class Data:
    """What a run reads: ``images`` an epoch; ``bytes_of(start, stop)`` that this rank reads from caches in
    steps [start, stop), or None if the tokens come from elsewhere.
    """

    images: int
    bytes_of: Callable[[int, int], int | None] = lambda _start, _stop: None


def show(
    options: Any,
    jobs: Sequence[Job],
    training: TrainingPlan,
    runtime: Runtime,
    plan: DeepSpeedPlan,
    data: Data,
) -> None:
    """Measure a few steps; print the resolved ``options`` and what the run would take. Collective.

    Raises RunError or DamageError for a checkpoint that the run could not go on from, UserError if the
    micro batch does not fit the GPU, and what the source of the batches raises.
    """
    start = checkpoint.newest([job.out / CHECKPOINTS for job in jobs])
    for job in jobs if start else ():
        checkpoint.check(job.out / CHECKPOINTS, start, job.identity)
    estimate = sum(_estimate(job, plan, runtime.world) for job in jobs)
    models = [_model(job) for job in jobs]
    try:
        seconds, wait, memory = _measure(jobs, training, runtime, plan, start)
    except torch.OutOfMemoryError:
        raise UserError(
            f"a micro batch of {plan.micro_batch} images does not fit the memory of {runtime.device}",
            "lower train_micro_batch_size_per_gpu in the DeepSpeed config, or raise the ZeRO stage",
            on_rank=runtime.rank,
        ) from None
    if runtime.main:
        rows = [
            (plan.path.name, ", ".join(f"{key}={value}" for key, value in leaves_of(plan.json).items())),
            ("a step", f"{plan.global_batch} images: {plan.summary()}"),
            *models,
            ("memory a GPU", _memory(memory, estimate, plan, runtime)),
            *_cost_rows(seconds, wait, training, start, plan, runtime, data),
        ]
        console.say(config.to_yaml(options).rstrip())
        console.out.print(_table(runtime, rows))
        console.say("dry run: nothing was written")


# ---------------------------------------------------------------------------------------- measuring


def _measure(
    jobs: Sequence[Job], training: TrainingPlan, runtime: Runtime, plan: DeepSpeedPlan, start: int
) -> tuple[float, float, MemoryUse]:
    """One rank's seconds a step, those of waiting for data among them, and its memory.

    Runs a step to warm up, one for its memory, and :data:`STEPS` ones for their time.
    """
    short_plan = _runnable(plan, runtime.device)
    engines = [Training(job, runtime, short_plan) for job in jobs]
    first_batches = training.batches(start, start + 1)
    batches = list(islice(feed(first_batches, runtime.device), short_plan.accumulation))
    del first_batches  # its threads would count as memory
    gc.collect()
    timer = _StepTimer(engines, short_plan, runtime.device)
    timer.step(iter(batches))
    memory = memory_use(
        partial(timer.step, iter(batches)), [engine.module for engine in engines], runtime.device
    )
    timer = _StepTimer(engines, short_plan, runtime.device)
    stream = feed(training.batches(start, start + 1 + STEPS), runtime.device)
    for _ in range(STEPS):
        timer.step(stream)
    return *timer.of_a_step(plan.accumulation), memory


def _runnable(plan: DeepSpeedPlan, device: torch.device) -> DeepSpeedPlan:
    """``plan`` with at most 2 micro batches a step, and on a CPU without what DeepSpeed has for GPUs alone.

    bf16 takes the place of fp16 there: as many bytes.
    """
    accumulation = min(plan.accumulation, 2)
    json = {**plan.json, ds_config.ACCUMULATION: accumulation}
    if device.type == "cpu":
        if json.pop("fp16", {}).get("enabled"):
            json["bf16"] = {"enabled": True}
        zero = json.get("zero_optimization", {})
        json["zero_optimization"] = {key: zero[key] for key in zero if not key.startswith("zero_quantized")}
    return replace(plan, json=json, accumulation=accumulation)


class _StepTimer:
    """Steps of all trainings on the same batches, and the seconds of each micro batch.

    ``last`` has those of each step's last micro batch, in which the optimizer steps; ``first`` the others.
    """

    def __init__(self, trainings: Sequence[Training], plan: DeepSpeedPlan, device: torch.device) -> None:
        self._trainings, self._plan, self._device = trainings, plan, device
        self._number = 0
        self.first: list[float] = []
        self.last: list[float] = []
        self.waits: list[float] = []

    def step(self, batches: Iterator[Any]) -> None:
        """One optimizer step."""
        for training in self._trainings:
            training.begin(self._number)
        self._number += 1
        for micro in range(self._plan.accumulation):
            is_last = micro == self._plan.accumulation - 1
            began = time.perf_counter()
            batch = next(batches)
            self.waits.append(time.perf_counter() - began)
            for training in self._trainings:
                training.micro_step(batch, micro, gradient_norm=self._plan.stage == 0 and is_last)
                if is_last:
                    training.end(self._number)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            (self.last if is_last else self.first).append(time.perf_counter() - began)

    def of_a_step(self, accumulation: int) -> tuple[float, float]:
        """The seconds of a step of ``accumulation`` micro batches, and those of waiting for data."""
        earlier = (accumulation - 1) * _mean(self.first)
        return earlier + _mean(self.last), accumulation * _mean(self.waits)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _estimate(job: Job, plan: DeepSpeedPlan, world: int) -> float:
    """Bytes of a job's model states on each of ``world`` GPUs, by DeepSpeed's estimator."""
    trainable = [p for p in job.module.parameters() if p.requires_grad]
    layers = (module.parameters(recurse=False) for module in job.module.modules())
    largest = max(sum(p.numel() for p in layer) for layer in layers)
    zero = plan.json.get("zero_optimization", {})
    offloads = {
        key: (zero.get(part) or {}).get("device", "none") != "none"
        for key, part in (("offload", "offload_optimizer"), ("offload_parameters", "offload_param"))
    }
    return zero_memory(sum(p.numel() for p in trainable), largest, world, **offloads)[plan.stage]


# -------------------------------------------------------------------------------------------- words


def _table(runtime: Runtime, rows: Sequence[tuple[str, str]]) -> Table:
    ranks = "1 rank" if runtime.world == 1 else f"{runtime.world} ranks"
    note = ", of which rank 0 is measured here; the others are not there" if runtime.simulated else ""
    table = Table(title=f"{ranks}{note}", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(console.escape, row))
    return table


def _model(job: Job) -> tuple[str, str]:
    sizes = [(p.numel(), p.requires_grad) for p in job.module.parameters()]
    trained, frozen = (sum(size for size, grad in sizes if grad is kind) for kind in (True, False))
    return job.title, f"{trained:,} parameters are trained, {frozen:,} are frozen; {job.out}"


def _memory(use: MemoryUse, estimate: float, plan: DeepSpeedPlan, runtime: Runtime) -> str:
    method = "measured" if runtime.device.type == "cuda" else "counted on a CPU"
    buckets = ", with DeepSpeed's buckets (reduce_bucket_size)" if plan.stage else ""
    return (
        f"{console.size(use.resting + use.working)}: {console.size(use.resting)} between steps, and at most "
        f"{console.size(use.working)} more in a micro batch of {plan.micro_batch}; {method}{buckets}. "
        f"DeepSpeed's estimate of model states in half precision alone: {console.size(estimate)}"
    )


def _cost_rows(
    seconds: float,
    wait: float,
    training: TrainingPlan,
    start: int,
    plan: DeepSpeedPlan,
    runtime: Runtime,
    data: Data,
) -> Iterator[tuple[str, str]]:
    """The rows about reading, steps and time."""
    read_bytes = data.bytes_of(start, start + STEPS)
    if read_bytes is not None:
        share, node = read_bytes / STEPS, min(NODE, runtime.world)
        rate = share / seconds / 1e9
        yield (
            "read from the cache",
            f"{console.size(share)} a rank and step, {console.size(share * runtime.world)} over all ranks; "
            f"at the pace below {rate * node:.3f} GB/s on a node of {node}, "
            f"{rate * runtime.world:.3f} GB/s in all",
        )
    epochs = training.steps * plan.global_batch / data.images
    rest = f", {training.steps - start} left after the checkpoint of step {start}" if start else ""
    yield "steps", f"{training.steps}{rest}; {epochs:.2f} epochs of {data.images} images"
    yield (
        "time",
        f"{_duration((training.steps - start) * seconds)} at {seconds:.3f} s a step, of which "
        f"{wait:.3f} s waiting for data; the mean of {STEPS} steps of one rank on this machine, "
        f"without {'communication, ' if runtime.simulated else ''}checkpoints and validation",
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
