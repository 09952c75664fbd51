"""How long a checkpoint keeps the steps waiting: written at once, and beside the steps.

    python benchmarks/checkpoint_stall.py [--student NAME ...] [--repeats 3]

A world of one, ZeRO 2, a moving average, small images. For each student a row of the table of ``scale.md``:
seconds that the loop waits if it takes the state, makes the bytes and writes them (as it did), seconds that
it waits if a thread writes, and what the steps beside that thread take longer. Medians of the repeats, which
take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from gkd_scale import files
from gkd_scale.engine import checkpoint
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.loop import Job, Training
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.saver import Saver

STUDENTS = ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"]
BATCH, SIDE, STEPS = 4, 64, 5
PLAN = {
    "train_micro_batch_size_per_gpu": BATCH,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 10**9,
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 50_000_000},
}


class Loss(nn.Module):
    """The mean square of a network's output."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = timm.create_model(name, num_classes=0, img_size=SIDE)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.net(pixels).square().mean()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--student", nargs="+", default=STUDENTS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    runtime = Runtime.start()
    print(
        "| parameters | file | a step, s | waits, written at once, s | waits now, s | ratio | steps beside |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in options.student:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, Path(folder), runtime, options.repeats), flush=True)


def measure(name: str, folder: Path, runtime: Runtime, repeats: int) -> str:
    """The row of one student."""
    job = Job(name, Loss(name), lambda _: 1e-4, folder, ema=0.99)
    training = Training(job, runtime, DeepSpeedPlan(folder, PLAN, BATCH, 1, BATCH))
    plain = [steps(training, 1) for _ in range(STEPS + 2)][2:]
    at_once, waits, beside = [], [], []
    for repeat in range(1, repeats + 1):
        at_once.append(write_at_once(training, 2 * repeat))
        plain.append(steps(training, 1))
        wait, slower = write_beside(training, 2 * repeat + 1)
        waits.append(wait)
        beside.append(slower)
        plain.append(steps(training, 1))
        size = checkpoint.path(training.folder, 2 * repeat + 1).stat().st_size
        checkpoint.prune(training.folder, 1)
    before, now, step = map(statistics.median, (at_once, waits, plain))
    millions = sum(p.numel() for p in job.module.parameters()) / 1e6
    return (
        f"| {millions:.0f} M | {size / 1e6:.0f} MB | {step:.2f} | {before:.2f} | {now:.2f} | "
        f"{now / before:.2f} | {statistics.median(beside) / step:.2f} times as long |"
    )


def steps(training: Training, count: int) -> float:
    """Seconds of ``count`` steps."""
    began = time.perf_counter()
    for number in range(count):
        training.begin(number)
        training.micro_step(torch.randn(BATCH, 3, SIDE, SIDE), number, gradient_norm=False)
        training.end(number + 1)
    return time.perf_counter() - began


def write_at_once(training: Training, step: int) -> float:
    """Seconds of a checkpoint as it was written before: state, one block of bytes, file."""
    began = time.perf_counter()
    snapshot = checkpoint.take(step, training.engine, training.ema, training.runtime, {})
    files.write_bytes(checkpoint.path(training.folder, step), to_bytes(snapshot.tensors, {"gkd_scale": "{}"}))
    return time.perf_counter() - began


def write_beside(training: Training, step: int) -> tuple[float, float]:
    """Seconds that the loop waits for a checkpoint, and the mean seconds of a step until it is whole."""
    with Saver(training.runtime, 2, None) as saver:
        began = time.perf_counter()
        saver.wait()
        saver.write(
            [(training.folder, checkpoint.take(step, training.engine, training.ema, training.runtime, {}))]
        )
        wait = time.perf_counter() - began
        durations = [steps(training, 1)]
        while not checkpoint.path(training.folder, step).exists():
            durations.append(steps(training, 1))
        saver.wait()
    return wait, statistics.mean(durations)


if __name__ == "__main__":
    main()
