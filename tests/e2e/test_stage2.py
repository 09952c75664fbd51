"""Stage 2 through the real launcher: several sources, few labels, rare classes, and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests import warm
from tests.conftest import deepspeed, environment, tiny_args, write_images
from tests.segment.datasets.miniature import write_array

pytestmark = pytest.mark.e2e


def write_camvid(folder: Path, count: int, seed: int) -> Path:
    """``count`` images of CamVid's layout, whose labels are 11 classes and void in blocks."""
    write_images(folder / "images", count, seed=seed)
    for number, image in enumerate(sorted((folder / "images").iterdir())):
        blocks = np.random.default_rng((seed, number)).integers(0, 12, (6, 8), dtype=np.uint8)
        write_array(folder / "labels" / f"{image.stem}.png", blocks.repeat(8, axis=0).repeat(8, axis=1))
    return folder


def test_a_killed_run_on_two_weighted_sources_goes_on_to_the_same_head(tmp_path: Path) -> None:
    one, two = (write_camvid(tmp_path / f"source{seed}", 12, seed) for seed in (1, 2))

    def command(out: Path) -> list[str]:
        data = ["--train", f"camvid:{one}", "--train", f"camvid:{two}", "--train-weights", 3, 1]
        few = ["--label-fraction", "1/2", "--sampling", "rare-class", "--val", f"camvid:{two}"]
        student = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args(), "img_size=[48, 64]"]
        steps = ["--method", "none", "--steps", 40, "--save-every", 4, "--val-every", 20]
        size = ["--image-size", "48x64", "--head", "linear", "--global-batch", 4, "--out", out]
        return deepspeed("stage2.py", "--ds-config", "zero2.json", *data, *few, *student, *steps, *size)

    whole, out = tmp_path / "whole", tmp_path / "killed"
    result = warm.run(command(whole), tmp_path)
    assert result.code == 0, result.text
    assert "12 images to train on" in result.text, "half of the 24"
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            command(out), cwd=tmp_path, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not list((out / "checkpoints").glob("step-*.safetensors")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert not (out / "run.json").exists()
    result = warm.run(command(out), tmp_path)
    assert result.code == 0, result.text
    assert "going on from step" in result.text
    for name in ("head.safetensors", "backbone.safetensors"):
        first, second = (load_file(folder / name) for folder in (whole, out))
        assert all(first[key].equal(second[key]) for key in first), name
    scores = [json.loads((folder / "best.json").read_text()) for folder in (whole, out)]
    assert scores[0] == scores[1]
