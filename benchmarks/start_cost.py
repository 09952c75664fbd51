"""What the checks of user input cost: the same commands from two checkouts, in turn.

    git worktree add ../before COMMIT && python benchmarks/start_cost.py ../before [REPEATS]

CPU seconds (user and system, one thread) of each command, the median over repeats, and new over old. Needs
../shared. Commands: cache-teacher on 305 street scenes, stage 1 and stage 2 until their first step is done.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SHARED = HERE.parent / "shared"
TEACHER = [
    *("--teacher", "mobilenetv2_100", "--teacher-args", "pad_type=same", "--teacher-layer", "3"),
    *("--teacher-weights", str(SHARED / "teacher/mobilenetv2_100_imagenet1k.safetensors")),
]
STUDENT = ["--student", "regnetx_002", "--student-args", "output_stride=16", "wa=18.0", "wm=2.0"]


def commands(cache: Path) -> dict[str, list[str]]:
    """Each command without its --out."""
    images = SHARED / "camvid/source_day/images"
    scenes = ["--train", f"camvid:{SHARED}/camvid/source_day", "--val", f"camvid:{SHARED}/camvid/val_day"]
    one = ["--steps", "1", "--global-batch", "8"]
    return {
        "cache-teacher": [
            *("-m", "gkd_scale.cli", "cache-teacher", "--images", str(images), *TEACHER),
            *("--image-size", "144x192", "--workers", "1"),
        ],
        "stage 1 start": ["launchers/stage1.py", "--cache", str(cache), *STUDENT, *one],
        "stage 2 start": [
            *("launchers/stage2.py", *scenes, *STUDENT, "--adapt", "full", "--image-size", "144x192", *one),
        ],
    }


def cpu_seconds(checkout: Path, command: list[str], out: Path) -> float:
    """CPU seconds of a command run from a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *command, "--out", str(out)],
        cwd=checkout,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main(old: Path, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = root / "cache"
        cpu_seconds(old, commands(cache)["cache-teacher"], cache)
        print("| command | before (s) | after (s) | ratio |\n|---|---:|---:|---:|")
        for name, command in commands(cache).items():
            seconds: dict[Path, list[float]] = {old: [], HERE: []}
            for repeat in range(repeats):
                for checkout in (old, HERE) if repeat % 2 else (HERE, old):
                    out = root / f"{name.replace(' ', '-')}-{repeat}-{checkout == HERE}"
                    seconds[checkout].append(cpu_seconds(checkout, command, out))
            before, after = (statistics.median(values) for values in seconds.values())
            print(f"| {name} | {before:.2f} | {after:.2f} | {after / before:.3f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
