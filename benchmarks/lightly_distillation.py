"""Images/s of LightlyTrain's distillation on one CPU thread, with the peers' student, teacher and batch.

    python -m venv lightly && lightly/bin/pip install lightly-train timm
    lightly/bin/python benchmarks/lightly_distillation.py --images FOLDER [--method NAME] [--steps N]

The student is timm's ViT-Ti/16 at 224, the teacher DINOv2's ViT-B/14 without registers, batch 8, one loader
worker, fp32. Weights are random, as speed does not depend on them. The library's own defaults
decide the rest. Compare with ``stage1_speed.py peers``, run right before or after.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightly_train
import torch
from lightly_train._methods.method import Method
from lightly_train._models.dinov2_vit import dinov2_vit_package

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--method", default="distillation")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ends: list[float] = []

    def note_the_time(*_: Any) -> None:
        ends.append(time.perf_counter())

    Method.on_train_batch_end = note_the_time
    dinov2_vit_package.dinov2_helper.load_weights = lambda model, **_: model
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "images"
        data.mkdir()
        for path in sorted(args.images.glob("*.jpg"))[: BATCH * 64]:
            (data / path.name).symlink_to(path.resolve())
        lightly_train.pretrain(
            out=Path(scratch) / "out",
            data=data,
            model="timm/vit_tiny_patch16_224",
            method=args.method,
            method_args={"teacher": "dinov2/vitb14-noreg"},
            batch_size=BATCH,
            num_workers=1,
            accelerator="cpu",
            devices=1,
            precision="32-true",
            epochs=1,
            trainer_args={"max_steps": args.steps + 2, "max_epochs": 1},
        )
    seconds = [after - before for before, after in pairwise(ends[1:])]
    rate = BATCH / min(seconds)
    result = {"version": lightly_train.__version__, "method": args.method, "images/s": rate}
    print(json.dumps({"lightly": result}, indent=2))


if __name__ == "__main__":
    main()
