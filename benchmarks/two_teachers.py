"""CamVid from DINOv2, from MobileNetV2, and from both at once: the same student, pixels and steps.

    python benchmarks/two_teachers.py --data ../shared --out runs/two_teachers [--only both/0]

The student, its sizes and flags are those of ``recipes/camvid_dinov2.yaml``. Both caches of an image set hold
the same views. A command that is done is not run again, so that the script goes on where it stopped. It ends
with the table; ``--only`` runs some cells and shows those that are done.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gkd_scale.subprocesses import Step, run_step

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
IMAGES = {"proxy": "proxy_imagenet", "source": "camvid/source_day/images"}
DOMAINS = {"day": "unseen_day", "dusk": "unseen_dusk"}
SIZE = "192x256"
STUDENT = ["--student", "regnetx_002", "--student-args", "output_stride=16", "wa=18.0", "wm=2.0"]
TEACHERS = {
    "dinov2": [
        *("--teacher", "vit_small_patch14_dinov2.lvd142m", "--patch-size", "16", "--teacher-layer", "9"),
        *("--teacher-weights", "{data}/teacher/dinov2_vits14_timm_fp16.safetensors"),
        *("--teacher-dtype", "bfloat16"),
    ],
    "mobilenetv2": [
        *("--teacher", "mobilenetv2_100", "--teacher-args", "pad_type=same", "--teacher-layer", "3"),
        *("--teacher-weights", "{data}/teacher/mobilenetv2_100_imagenet1k.safetensors"),
        *("--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"),
    ],
}
ROWS = {"dinov2": ["dinov2"], "mobilenetv2": ["mobilenetv2"], "both": ["dinov2", "mobilenetv2"]}
STEPS = {"1a": 600, "1b": 2100, "head": 450}
"""12 000 student passes: 20 % on ImageNet, 70 % on CamVid, 10 % for the head, as in the recipe."""


def launch(script: str, *flags: object) -> list[str]:
    command = [
        "deepspeed",
        "--num_gpus",
        "1",
        ROOT / "launchers" / script,
        "--ds-config",
        "zero2.json",
        *flags,
    ]
    return [str(part) for part in command]


def caches(data: Path, out: Path, teachers: Sequence[str]) -> Iterator[tuple[Step, Path]]:
    """The commands that write the caches, each with the file that it writes last."""
    for name in teachers:
        flags = [flag.format(data=data) for flag in TEACHERS[name]]
        for kind, images in IMAGES.items():
            folder = out / "caches" / f"{name}-{kind}"
            command = ["gkd-scale", "cache-teacher", "--images", str(data / images), *flags]
            command += ["--image-size", SIZE, "--views", "8", "--out", str(folder)]
            yield Step(f"cache {name} {kind}", command), folder / "manifest.parquet"


def cell(data: Path, out: Path, row: str, seed: int) -> Iterator[tuple[Step, Path]]:
    """The commands of a row and a seed, each with the file that it writes last."""
    folder = out / row / f"seed{seed}"
    weights: list[object] = []
    for phase, kind in (("1a", "proxy"), ("1b", "source")):
        inputs = [flag for name in ROWS[row] for flag in ("--cache", out / "caches" / f"{name}-{kind}")]
        flags = [*inputs, *STUDENT, *weights, "--teacher-norm", "whiten", "--lr", "6e-3", "--ema", "0.99"]
        flags += ["--global-batch", 4, "--steps", STEPS[phase], "--seed", seed, "--out", folder / phase]
        yield Step(f"{row}-{seed} {phase}", launch("stage1.py", *flags)), folder / phase / "run.json"
        weights = ["--student-weights", folder / phase]
    flags = ["--train", f"camvid:{data}/camvid/source_day", "--val", f"camvid:{data}/camvid/val_day"]
    flags += ["--image-size", SIZE, "--head", "fpn", "--head-args", "width=48", "--global-batch", 8]
    flags += ["--steps", STEPS["head"], "--lr", "1e-2", "--val-every", 75, "--backbone", folder / "1b"]
    flags += [*STUDENT, "--seed", seed, "--out", folder / "head"]
    yield Step(f"{row}-{seed} head", launch("stage2.py", *flags)), folder / "head" / "run.json"
    command = ["gkd-scale", "evaluate", str(folder / "head")]
    for domain, images in DOMAINS.items():
        command += ["--data", f"{domain}=camvid:{data}/camvid/{images}"]
    yield Step(f"{row}-{seed} evaluate", command), folder / "head" / "evaluation.json"


def scores(folder: Path) -> list[float]:
    """mIoU in % on val_day, by day, at dusk, and the mean of the last two."""
    report = json.loads((folder / "evaluation.json").read_text())
    unseen = [report[name]["miou"] for name in DOMAINS]
    home = json.loads((folder / "best.json").read_text())["miou"]
    return [home, *unseen, statistics.fmean(unseen)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--out", type=Path, default=Path("runs/two_teachers"))
    parser.add_argument("--only", action="append", help="cells, for example both/0 or dinov2/*; repeatable")
    args = parser.parse_args()
    patterns = args.only or ["*"]
    cells = [
        (row, seed)
        for seed in SEEDS
        for row in ROWS
        if any(fnmatch.fnmatch(f"{row}/{seed}", pattern) for pattern in patterns)
    ]
    teachers = [name for name in TEACHERS if any(name in ROWS[row] for row, _ in cells)]
    works = list(caches(args.data, args.out, teachers))
    works += [work for row, seed in cells for work in cell(args.data, args.out, row, seed)]
    for number, (step, proof) in enumerate(works, 1):
        if not proof.exists():
            name = step.title.replace(" ", "-")
            run_step(step, f"{number}/{len(works)}", args.out / "logs" / f"{name}.log")
    for row in ROWS:
        runs = [args.out / row / f"seed{seed}" for seed in SEEDS]
        table = [scores(folder / "head") for folder in runs if (folder / "head/evaluation.json").exists()]
        if table:
            columns = np.array(table).T
            print(
                f"| {row} | {len(table)} | "
                + " | ".join(f"{c.mean():.1f} ± {c.std(ddof=len(c) > 1):.1f}" for c in columns)
            )


if __name__ == "__main__":
    main()
