"""Stage 1 as a command: ZeRO stages, ranks, kills, mistakes; through the real launcher where it matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file

from tests import warm
from tests.conftest import ROOT, TINY, deepspeed, environment, run, tiny_args

pytestmark = pytest.mark.e2e


def flags(cache: Path, out: Path, *more: object) -> list[object]:
    student = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args()]
    return ["--cache", cache, *student, "--out", out, "--global-batch", 8, *more]


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in metrics(out)]


@pytest.fixture(scope="module")
def reference(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 steps on one rank without ZeRO, with a checkpoint at 3 and 6."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    options = flags(tiny_cache, out, "--steps", 8, "--save-every", 3)
    result = warm.run(deepspeed("stage1.py", "--ds-config", "zero0.json", *options), out.parent)
    assert result.code == 0, result.text
    return out


def test_a_run_holds_what_the_command_promises(reference: Path) -> None:
    rows = metrics(reference)
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        assert {"loss", "loss_feature", "loss_ladder", "loss_cls", "lr", "images_per_s", "data_wait"} <= set(
            row
        )
        assert row["grad_norm"] > 0
        assert row["loss"] == pytest.approx(
            row["loss_feature"] + row["loss_ladder"] + 0.1 * row["loss_cls"], rel=1e-5
        )
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    net.load_state_dict(load_file(reference / "backbone.safetensors"))
    assert list((reference / "tensorboard").iterdir())
    assert json.loads((reference / "run.json").read_text())["status"] == "complete"
    assert "global_batch: 8" in (reference / "config.yaml").read_text()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_on_two_ranks_gives_the_losses_of_one(
    stage: int, reference: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """Every ZeRO stage on two ranks; then another stage on one rank goes on from its checkpoint."""
    out = tmp_path / "run"
    options = flags(tiny_cache, out, "--steps", 8, "--save-every", 5)
    result = warm.run(deepspeed("stage1.py", "--ds-config", f"zero{stage}.json", *options, ranks=2), tmp_path)
    assert result.code == 0, result.text
    assert losses(out)[:5] == pytest.approx(losses(reference)[:5], rel=1e-4)
    assert losses(out) == pytest.approx(losses(reference), rel=1e-4)
    one, two = (load_file(path / "backbone.safetensors") for path in (out, reference))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    whole = losses(out)
    (out / "run.json").unlink()
    (out / "checkpoints/step-00000008.safetensors").unlink()
    result = warm.run(
        deepspeed("stage1.py", "--ds-config", f"zero{(stage + 2) % 4}.json", *options), tmp_path
    )
    assert result.code == 0, result.text
    assert "going on from step 5 of 8" in result.text
    assert losses(out) == pytest.approx(whole, rel=1e-5)


def rank_process(folder: Path, rank: int) -> int:
    """The process id of a rank that trains into ``folder``."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if f"--local_rank={rank}" in command and str(folder) in command and "-m" not in command:
            return int(process.name)
    raise AssertionError(f"no rank {rank}")


def test_a_killed_rank_and_the_same_command_give_the_same_run(tiny_cache: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"

    def command(folder: Path) -> list[str]:
        options = flags(tiny_cache, folder, "--steps", 60, "--save-every", 7)
        return deepspeed("stage1.py", "--ds-config", "zero2.json", *options, ranks=2)

    assert warm.run(command(whole), tmp_path).code == 0
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command(out), cwd=tmp_path, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not list((out / "checkpoints").glob("step-*.safetensors")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(rank_process(out, 1), signal.SIGKILL)
        assert process.wait(60) != 0
    assert not (out / "run.json").exists()
    result = warm.run(command(out), tmp_path)
    assert result.code == 0, result.text
    assert "going on from step" in result.text
    assert losses(out) == losses(whole)
    one, two = (load_file(path / "backbone.safetensors") for path in (out, whole))
    assert all(one[name].equal(two[name]) for name in two)


def test_the_same_command_on_a_finished_run_says_so(reference: Path, tiny_cache: Path) -> None:
    before = (reference / "metrics.jsonl").read_bytes()
    options = flags(tiny_cache, reference, "--steps", 8, "--save-every", 3)
    result = warm.run(deepspeed("stage1.py", "--ds-config", "zero0.json", *options), reference.parent)
    assert result.code == 0
    assert "already complete" in result.text
    assert (reference / "metrics.jsonl").read_bytes() == before


def test_started_alone_the_script_is_a_world_of_one(
    reference: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    script = ROOT / "launchers/stage1.py"
    options = flags(tiny_cache, tmp_path / "run", "--steps", 8, "--ds-config", "zero1.json")
    result = run([sys.executable, script, *options], tmp_path)
    assert result.code == 0, result.text
    assert losses(tmp_path / "run") == pytest.approx(losses(reference), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--global-batch", 7], "a global batch of 7"),
        (["--student", "vit_tinny_patch16_224"], "did you mean"),
        (["--student-args", "patch_size=20"], "gives 'patch_size' twice"),
        (["--teacher", "vit_giant_patch14_dinov2"], "was made by the teacher"),
        (["--cache", "nowhere"], "nowhere"),
        (["--stepss", 3], "did you mean '--steps'"),
    ],
)
def test_mistakes_exit_2_with_one_clear_error(
    change: list[object], message: str, tiny_cache: Path, tmp_path: Path
) -> None:
    """The script alone, as each rank of the launcher runs it, in a world that divides nothing odd."""
    ranks = ["--ds-config", str(tmp_path / "two.json")]
    (tmp_path / "two.json").write_text('{"train_micro_batch_size_per_gpu": 2}')
    script = ROOT / "launchers/stage1.py"
    options = flags(tiny_cache, tmp_path / "run", "--steps", 2, *ranks, *change)
    result = warm.run([sys.executable, script, *options], tmp_path)
    assert result.code == 2, result.text
    assert message in result.text
    assert "Traceback" not in result.text
    assert result.text.count("error:") == 1


def test_the_launcher_passes_the_exit_code_on(tiny_cache: Path, tmp_path: Path) -> None:
    options = flags(tiny_cache, tmp_path / "run", "--steps", 2, "--global-batch", 7)
    result = run(deepspeed("stage1.py", "--ds-config", "zero2.json", *options, ranks=2), tmp_path)
    assert result.code == 2
    assert result.text.count("error:") == 1
