"""The whole pipeline as a user types it, small: data, caches, both phases, heads, mIoU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gkd_scale.errors import disk_full
from tests import warm
from tests.conftest import BIN, ROOT, TINY, deepspeed, environment, run, tiny_args

pytestmark = pytest.mark.e2e
STUDENT = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args()]


def gkd_scale(*arguments: object, cwd: Path) -> str:
    result = warm.run([BIN / "gkd-scale", *arguments], cwd)
    assert result.code == 0, result.text
    return result.text


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """Embedded data, a cache of each phase, and a student that went through both."""
    folder = tmp_path_factory.mktemp("pipeline")
    counts = ["--size", "32x48", "--proxy", 10, "--train", 8, "--val", 4, "--test", 2]
    gkd_scale("make-data", "data", *counts, cwd=folder)
    teacher = ["--teacher", "vit_tiny_patch16_224", "--teacher-weights", tiny_teacher]
    for name, images in (("proxy", "data/proxy"), ("source", "data/source/train/images")):
        flags = ["--images", images, *teacher, "--teacher-args", *tiny_args(), "--image-size", "32x48"]
        gkd_scale("cache-teacher", *flags, "--out", name, "--samples-per-shard", 4, cwd=folder)
        gkd_scale("verify", name, cwd=folder)
    steps = ["--steps", 3, "--global-batch", 4, "--ds-config", "zero2.json", *STUDENT]
    for cache, more in (("proxy", []), ("source", ["--student-weights", "run-proxy"])):
        command = deepspeed("stage1.py", "--cache", cache, "--out", f"run-{cache}", *steps, *more)
        result = (run if cache == "proxy" else warm.run)(command, folder)
        assert result.code == 0, result.text
    return folder


def stage2(*flags: object, ranks: int = 1) -> list[str]:
    data = ["--train", "embedded:data/source/train", "--val", "embedded:data/source/val"]
    common = ["--image-size", "32x48", "--steps", 4, "--global-batch", 4, "--val-every", 2]
    return deepspeed("stage2.py", "--ds-config", "zero2.json", *data, *common, *flags, ranks=ranks)


@pytest.mark.parametrize(("head", "ranks"), [("linear", 1), ("fpn", 2)])
def test_a_head_on_the_distilled_student_is_evaluated_on_every_domain(
    workspace: Path, head: str, ranks: int
) -> None:
    out = f"{head}-head"
    result = (run if ranks > 1 else warm.run)(  # once through the launcher
        stage2("--backbone", "run-source", *STUDENT, "--head", head, "--out", out, ranks=ranks), workspace
    )
    assert result.code == 0, result.text
    copy, frozen = (workspace / name / "backbone.safetensors" for name in (out, "run-source"))
    assert copy.read_bytes() == frozen.read_bytes()
    domains = ["--data", "day=embedded:data/source/val", "--data", "night=folder:data/unseen_night"]
    command = deepspeed("evaluate.py", ranks=ranks) if ranks > 1 else [BIN / "gkd-scale", "evaluate"]
    result = warm.run([*command, out, *domains, "--json", f"{head}.json"], workspace)
    assert result.code == 0, result.text
    scores = json.loads((workspace / f"{head}.json").read_text())
    assert list(scores) == ["day", "night"]
    assert scores["day"]["images"] == 4
    assert set(scores["night"]["iou"]) == set(
        (workspace / "data/unseen_night/classes.txt").read_text().split()
    )
    present = [value for value in scores["day"]["iou"].values() if value is not None]
    assert scores["day"]["miou"] == pytest.approx(sum(present) / len(present))
    assert 0 <= scores["night"]["miou"] <= 100
    assert "night: 2 images in" in result.text


def test_the_student_without_distillation_trains_end_to_end(workspace: Path) -> None:
    result = warm.run(stage2("--adapt", "full", *STUDENT, "--out", "scratch"), workspace)
    assert result.code == 0, result.text
    assert (workspace / "scratch/backbone.safetensors").is_file()


def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_later(workspace: Path) -> None:
    script = ROOT / "launchers/stage1.py"
    flags = [
        "--cache",
        "proxy",
        *STUDENT,
        "--steps",
        "4",
        "--save-every",
        "2",
        "--global-batch",
        "4",
        "--out",
        "full",
    ]
    command = [str(part) for part in (sys.executable, script, *flags)]
    failure = subprocess.run(
        ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *command],
        cwd=workspace,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert failure.returncode == 2, failure.stderr
    assert "no space left" in failure.stderr
    assert "Traceback" not in failure.stderr
    assert not list((workspace / "full/checkpoints").iterdir())
    result = warm.run(command, workspace)
    assert result.code == 0, result.text
    assert disk_full(OSError(2, "not full"), "x") is None


def test_help_is_fast_and_light() -> None:
    command = [str(BIN / "gkd-scale"), "--help"]
    took = []
    for _ in range(3):
        began = time.perf_counter()
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        took.append(time.perf_counter() - began)
    assert "cache-teacher" in text
    assert min(took) < 0.5
    heavy = "import sys, gkd_scale.cli; gkd_scale.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True, capture_output=True)


def test_the_student_of_the_run_is_the_one_that_was_asked_for(workspace: Path) -> None:
    wrong = ["--student", "vit_tiny_patch16_224", "--student-args", f"patch_size={TINY['patch_size']}"]
    result = warm.run(stage2("--backbone", "run-source", *wrong, "--out", "wrong"), workspace)
    assert result.code == 2
    assert result.text.count("error:") == 1
