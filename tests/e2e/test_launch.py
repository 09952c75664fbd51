"""Other ways to start stage 1: Slurm's variables and torchrun; and what SIGTERM does to a world of two."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gkd_scale.engine.runtime import free_port
from tests.conftest import BIN, ROOT, environment, run, tiny_args

pytestmark = pytest.mark.e2e
STEPS = 150


def flags(cache: Path, out: Path) -> list[str]:
    student = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args()]
    rest = ["--out", out, "--global-batch", 4, "--steps", STEPS, "--save-every", 1000, "--workers", 1]
    return [str(part) for part in ("--cache", cache, "--ds-config", "zero1.json", *student, *rest)]


def slurm(rank: int, port: int) -> dict[str, str]:
    """The variables that ``srun --ntasks 2`` gives to a task, and the address that our example exports."""
    task = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": 2, "MASTER_PORT": port}
    task |= {"SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2}
    return {**environment(), "MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in task.items()}}


def steps(out: Path) -> list[int]:
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["step"] for line in text[: text.rfind("\n") + 1].splitlines()]


def test_sigterm_to_one_task_of_slurm_stops_all_and_torchrun_goes_on(
    tiny_cache: Path, tmp_path: Path
) -> None:
    out, port = tmp_path / "run", free_port()
    script = ROOT / "launchers/stage1.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, script, *flags(tiny_cache, out)],
            env=slurm(rank, port),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        deadline = time.monotonic() + 200
        while len(steps(out)) < 3:
            assert time.monotonic() < deadline and ranks[0].poll() is None
            time.sleep(0.01)
        ranks[1].send_signal(signal.SIGTERM)
        outputs = [rank.communicate(timeout=100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    last = steps(out)[-1]
    assert (
        f"stopped after step {last} of {STEPS}" in outputs[0] and "resume with the same command" in outputs[0]
    )
    assert (out / f"checkpoints/step-{last:08d}.safetensors").exists() and not (out / "run.json").exists()
    torchrun = [BIN / "torchrun", "--nproc-per-node", 2, "--master-port", free_port()]
    result = run([*torchrun, script, *flags(tiny_cache, out)], tmp_path)
    assert result.code == 0, result.text
    assert f"going on from step {last} of {STEPS}" in result.text
    assert steps(out) == list(range(1, STEPS + 1))
    assert json.loads((out / "run.json").read_text())["status"] == "complete"
