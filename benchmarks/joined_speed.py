"""What joining costs: steps/s from two teachers over steps/s from one of equal bytes, in turns in one run.

    python benchmarks/joined_speed.py [--turns N] [--steps N] [--codec NAME] [--images N]

One cache holds tokens of 768 channels and the pixels; of two others, one holds 384 channels and the pixels,
the other 384 channels over the same pixels (``--images cache:CACHE``). Tokens are random; caches are written
and read as always. A small student learns by stage 1's default losses and conditioning from either, one
loader thread, one torch thread. Also batches/s without a student, as then nothing hides the reading. Every
figure is the least time of ``--turns`` turns, since other work on a machine only ever adds time; beside the
ratio of times is that of the processor's seconds, which other work hardly changes. Prints a table of one row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.joined import Joined, open_joined
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.stored import follow
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.engine import ds_config
from gkd_scale.engine.loop import Job, Training
from gkd_scale.engine.runtime import Runtime
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.students import load_student
from gkd_scale.types import Features

ROOT = Path(__file__).parents[1]
SIDE, PATCH, BATCH = 224, 16, 8
STUDENT = {"embed_dim": 96, "depth": 4, "num_heads": 3}


class RandomTeacher:
    """Tokens of ``dim`` channels that have nothing to do with the pixels."""

    def __init__(self, dim: int, seed: int) -> None:
        self.dim, self.image_size, self.grid = dim, (SIDE, SIDE), (SIDE // PATCH, SIDE // PATCH)
        self._seed, self._draw = seed, torch.Generator().manual_seed(seed)

    def fingerprint(self) -> dict[str, Any]:
        return {"model": f"random{self.dim}", "weights_sha256": "", "seed": self._seed}

    def __call__(self, pixels: Tensor) -> Features:
        tokens = torch.randn(len(pixels), self.grid[0] * self.grid[1], self.dim, generator=self._draw)
        return Features(tokens.mean(1), tokens)


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg")
    return folder


def write_cache(images: str | Path, out: Path, teacher: RandomTeacher, codec: str) -> Path:
    cfg = CacheTeacherConfig(images=images, image_size=SIDE, out=out, codec=codec)  # type: ignore[arg-type]
    build(follow(cfg), teacher, quiet=True)
    return out


class Side:
    """One of the two that are compared: the source of its batches, and a student that learns from it."""

    def __init__(self, paths: list[Path], scratch: Path, runtime: Runtime) -> None:
        caches = open_joined(paths)
        if isinstance(caches, Joined):
            caches.check(1)
        self.source = CachedSource(caches, global_batch=BATCH, micro_batch=BATCH, workers=1)
        teachers = caches.teachers if isinstance(caches, Joined) else (caches,)
        self.bytes = self.source.bytes_of(0, 1)
        torch.manual_seed(0)
        student = load_student("vit_tiny_patch16_224", (SIDE, SIDE), teachers[0].grid, args=dict(STUDENT))
        spaces = [
            TeacherSpace(
                cache.dim, cache.grid, conditionings.fit(self.source.spread(64, number), "whiten"), name
            )
            for number, (name, cache) in enumerate(zip("ab", teachers, strict=False))
        ]
        plan = ds_config.resolve(
            "zero0.json",
            ROOT / "launchers",
            global_batch=BATCH,
            world=1,
            device=runtime.device,
            default=BATCH,
        )
        job = Job("bench", Distiller(student, *spaces), lambda _: 1e-4, scratch / "run")
        self.training = Training(job, runtime, plan)

    def learn(self, steps: int) -> None:
        """``steps`` optimizer steps, from the first read on."""
        for step, batch in enumerate(self.source.batches(0, steps)):
            self.training.begin(step)
            self.training.micro_step(batch, step, gradient_norm=True)
            self.training.end(step + 1)

    def read(self, steps: int) -> None:
        """The batches of ``steps`` steps and nothing else."""
        for _ in self.source.batches(0, steps):
            pass


def compare(turns: int, steps: int, one: Callable[[int], None], two: Callable[[int], None]) -> list[str]:
    """Least seconds of two works of ``steps`` steps, in turns after one that does not count.

    Steps a second of each, and the second's over the first's, by time and by the processor's seconds.
    """
    wall, cpu = np.full((2, turns + 1), np.inf), np.full((2, turns + 1), np.inf)
    for turn in range(turns + 1):
        for place, work in enumerate((one, two)):
            began = time.perf_counter(), time.process_time()
            work(steps)
            if turn:
                wall[place, turn] = time.perf_counter() - began[0]
                cpu[place, turn] = time.process_time() - began[1]
    (first, second), (mine, theirs) = wall.min(1), cpu.min(1)
    return [f"{steps / first:.2f}", f"{steps / second:.2f}", f"{first / second:.2f} ({mine / theirs:.2f})"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--codec", default="fp16")
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runtime = Runtime.start()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images = write_images(scratch / "images", args.images)
        whole = write_cache(images, scratch / "whole", RandomTeacher(768, 0), args.codec)
        half = write_cache(images, scratch / "half", RandomTeacher(384, 1), args.codec)
        rest = write_cache(f"cache:{half}", scratch / "rest", RandomTeacher(384, 2), args.codec)
        one, two = Side([whole], scratch, runtime), Side([half, rest], scratch, runtime)
        step_rates = compare(args.turns, args.steps, one.learn, two.learn)
        batch_rates = compare(args.turns, args.steps, one.read, two.read)
    print(
        "| codec | bytes | steps/s of one | of two | ratio (CPU) | batches/s of one | of two | ratio (CPU) |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    print(f"| {' | '.join([args.codec, f'{two.bytes / one.bytes:.3f}', *step_rates, *batch_rates])} |")
    runtime.stop()


if __name__ == "__main__":
    main()
