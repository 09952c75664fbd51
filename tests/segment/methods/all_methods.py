"""Stage 2 with every method, three steps each, in one process; a JSON line a method. Run by a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gkd_scale import config
from gkd_scale.engine.launch import leave
from gkd_scale.engine.runtime import Runtime
from gkd_scale.segment import stage2
from gkd_scale.segment.config import METHODS, Stage2Config
from tests.conftest import ROOT, tiny_args


def main(folder: Path, weights: str) -> None:
    runtime = Runtime.start()
    network = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args(), "img_size=[32,48]"]
    teacher = ["--teacher", "vit_tiny_patch16_224", "--teacher-weights", weights]
    teacher += ["--teacher-args", *tiny_args(), "--teacher-head", str(folder / "teacher")]
    runs = {"teacher": ["--backbone", weights]}
    runs |= {name: ["--method", name, *(teacher if name != "none" else [])] for name in METHODS}
    runs["bfloat16"] = ["--method", "vanilla-kd", *teacher, "--teacher-dtype", "bfloat16"]
    for name, flags in runs.items():
        data = ["--train", f"folder:{folder / 'data'}", "--val", f"folder:{folder / 'data'}"]
        argv = [*data, "--image-size", "32x48", "--steps", "3", "--global-batch", "4", "--val-every", "3"]
        argv += [*network, *flags, "--out", str(folder / name)]
        cfg = config.parse(Stage2Config, argv, prog="stage2.py", description="")
        stage2.run(cfg, runtime, ROOT / "launchers")
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        print(json.dumps({"run": name, "steps": rows}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    leave(0)
