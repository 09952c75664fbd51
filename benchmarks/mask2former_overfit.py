"""Can the Mask2Former head learn? Eight CamVid frames by heart, on a frozen backbone, mIoU above 0.9.

The head is the small decoder, the backbone the MobileNetV2 of ../shared with its ImageNet weights, and the
training is stage 2 as ``launchers/stage2.py`` runs it, without augmentation. The eight frames are both
training and validation data: this measures whether head, loss and scoring fit together, and nothing else.

    python benchmarks/mask2former_overfit.py --out runs/overfit
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gkd_scale import config, console
from gkd_scale.config import option
from gkd_scale.engine.runtime import Runtime
from gkd_scale.segment import stage2
from gkd_scale.segment.config import Stage2Config

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
FRAMES = 8


@dataclass
class Options:
    """Learn eight frames by heart."""

    out: Path = option(Path("runs/overfit"), "folder of the frames and the run")
    steps: int = option(400, "optimizer steps of 4 images")
    lr: float = option(1e-3, "peak learning rate")
    image_size: str = option("360x480", "training size; frames are 360x480")
    head_args: list[str] = option(["size=small"], "arguments of the head")


def frames(folder: Path) -> Path:
    """Eight frames, evenly spread over the source sequences, in the layout of the camvid adapter."""
    source = SHARED / "camvid/source_day"
    images = sorted((source / "images").iterdir())
    for image in images[:: len(images) // FRAMES][:FRAMES]:
        for file in (image, source / "labels" / f"{image.stem}.png"):
            target = folder / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return folder


def main() -> int:
    cfg = config.parse(Options, sys.argv[1:], prog="mask2former_overfit.py", description=__doc__ or "")
    if not SHARED.is_dir():
        console.err.print(f"no {SHARED} here: this benchmark reads its images there")
        return 2
    data = f"camvid:{frames(cfg.out / 'frames')}"
    weights = SHARED / "teacher/mobilenetv2_100_imagenet1k.safetensors"
    flags = ["--backbone", weights, "--student", "mobilenetv2_100", "--student-args", "pad_type=same"]
    flags += ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5", "--image-size", cfg.image_size]
    flags += ["--head", "mask2former", "--head-args", *cfg.head_args, "--train", data, "--val", data]
    flags += ["--augment.scale", "1", "1", "--augment.flip", "0", "--augment.photometric", "0"]
    flags += [
        "--augment.cat-max-ratio",
        "1",
        "--optim.weight-decay",
        "0",
        "--lr",
        cfg.lr,
        "--steps",
        cfg.steps,
    ]
    flags += [
        "--global-batch",
        "4",
        "--val-every",
        "50",
        "--ds-config",
        "zero2.json",
        "--out",
        cfg.out / "run",
    ]
    given = [str(flag) for flag in flags]
    runtime = Runtime.start()
    began = time.monotonic()
    stage2.run(config.parse(Stage2Config, given, prog="", description=""), runtime, ROOT / "launchers")
    lines = (cfg.out / "run/metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    losses = [each["loss"] for each in history if "loss" in each]
    record = {
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU",
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "loss": {"first": round(losses[0], 2), "last": round(losses[-1], 2)},
        "miou": {each["step"]: round(each["val_miou"], 2) for each in history if "val_miou" in each},
    }
    console.out.print_json(data=record)
    return 0 if max(record["miou"].values()) > 90 else 1


if __name__ == "__main__":
    sys.exit(console.run(main))
