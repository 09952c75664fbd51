"""The whole pipeline on real images, from a pretrained teacher to mIoU in an unseen town and at dusk.

Teacher: MobileNetV2, ImageNet-1k weights, features at stride 16. Proxy: 1000 ImageNet images. Source:
CamVid by day. Student: a ViT 96 wide and 4 deep, from scratch. Rows: teacher with a head on its frozen
features; the student trained end to end on source labels for as many optimizer steps as all of GKD; the
student with GKD. The domains ``unseen_*`` are evaluated once, at the end; nothing is chosen on them.

    python benchmarks/camvid.py --out runs/camvid            about 25 minutes on 2 CPU cores
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gkd_scale import config, console
from gkd_scale.config import option
from gkd_scale.demo.pipeline import table
from gkd_scale.steps import Step, run_all

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
SIZE = "144x192"
DOMAINS = ("val_day", "unseen_day", "unseen_dusk")
NORM = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
TEACHER = ["mobilenetv2_100", str(SHARED / "teacher/mobilenetv2_100_imagenet1k.safetensors"), "pad_type=same"]
STUDENT = "--student vit_tiny_patch16_224 --student-args embed_dim=96 depth=4 num_heads=3 img_size=[144,192]"


@dataclass
class Options:
    """Run the pipeline on the real images in ../shared."""

    out: Path = option(Path("runs/camvid"), "folder of caches, runs and results")
    steps: int = option(700, "steps of each phase of stage 1")
    head_steps: int = option(400, "steps of stage 2")
    views: int = option(3, "cached views of each image")
    lr: float = option(1e-3, "peak learning rate of stage 1")
    qsd_init: str = option("zero-query", "--qsd.init of stage 1")
    seed: int = option(0, "seed of everything")


def plan(cfg: Options) -> list[Step]:
    """The commands, as a user would type them."""
    out, seed = cfg.out, ["--seed", str(cfg.seed)]
    name, weights, pad = TEACHER
    steps = []
    for cache, images in (("proxy", "proxy_imagenet"), ("source", "camvid/source_day/images")):
        command = ["gkd-scale", "cache-teacher", "--images", str(SHARED / images), "--teacher", name]
        command += ["--teacher-weights", weights, "--teacher-args", pad, "--teacher-layer", "3", *NORM]
        command += [
            "--image-size",
            SIZE,
            "--views",
            str(cfg.views),
            "--out",
            str(out / "caches" / cache),
            *seed,
        ]
        steps.append(Step(f"cache the {cache} images", command))
    stage1 = ["deepspeed", str(ROOT / "launchers/stage1.py"), "--ds-config", "zero2.json", *STUDENT.split()]
    stage1 += ["--steps", str(cfg.steps), "--lr", str(cfg.lr), "--qsd.init", cfg.qsd_init, *seed]
    proxy = ["--cache", str(out / "caches/proxy"), "--out", str(out / "1a")]
    source = [
        "--cache",
        str(out / "caches/source"),
        "--student-weights",
        str(out / "1a"),
        "--out",
        str(out / "1b"),
    ]
    steps += [Step("stage 1a", stage1 + proxy), Step("stage 1b", stage1 + source)]
    for row, flags in _heads(cfg).items():
        steps.append(Step(f"stage 2 {row}", _stage2(out / f"{row}-head") + flags + seed))
    data = [part for d in DOMAINS for part in ("--data", f"{d}=camvid:{SHARED / 'camvid' / d}")]
    for row in _heads(cfg):
        command = [
            "gkd-scale",
            "evaluate",
            str(out / f"{row}-head"),
            *data,
            "--json",
            str(out / f"{row}.json"),
        ]
        steps.append(Step(f"evaluate {row}", command))
    return steps


def _stage2(out: Path) -> list[str]:
    camvid = SHARED / "camvid"
    command = [
        "deepspeed",
        str(ROOT / "launchers/stage2.py"),
        "--ds-config",
        "zero2.json",
        "--head",
        "linear",
    ]
    command += ["--train", f"camvid:{camvid / 'source_day'}", "--val", f"camvid:{camvid / 'val_day'}"]
    return [*command, "--image-size", SIZE, "--out", str(out)]


def _heads(cfg: Options) -> dict[str, list[str]]:
    name, weights, pad = TEACHER
    head = ["--steps", str(cfg.head_steps)]
    whole = ["--steps", str(2 * cfg.steps + cfg.head_steps)]
    return {
        "teacher": ["--backbone", weights, "--student", name, "--student-args", pad, *NORM, *head],
        "scratch": ["--adapt", "full", *STUDENT.split(), *whole],
        "gkd": ["--backbone", str(cfg.out / "1b"), *STUDENT.split(), *head],
    }


def main() -> int:
    cfg = config.parse(Options, sys.argv[1:], prog="camvid.py", description=__doc__ or "")
    if not SHARED.is_dir():
        console.err.print(f"no {SHARED} here: this benchmark reads its images there")
        return 2
    began = time.monotonic()
    steps = plan(cfg)
    seconds = run_all(steps, cfg.out / "logs")
    names = {"teacher": "teacher", "scratch": "student without distillation", "gkd": "student with GKD"}
    results = {name: json.loads((cfg.out / f"{row}.json").read_text()) for row, name in names.items()}
    console.out.print(table(results))
    record = {
        "options": config.to_dict(cfg),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "seconds": {step.title: round(took) for step, took in zip(steps, seconds, strict=True)},
        "miou": {
            name: {d: round(r["miou"], 2) for d, r in result.items()} for name, result in results.items()
        },
    }
    (cfg.out / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    console.out.print_json(data=record)
    return 0


if __name__ == "__main__":
    sys.exit(console.run(main))
