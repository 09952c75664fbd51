"""Whole trainings with loggers: a kill, a resumption with another --log, mistakes before any work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from tests.cases import tiny
from tests.cases.case import Bench
from tests.conftest import ROOT, environment
from tests.engine.loggers import stores

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("offline"),
]


def rows(out: Path) -> stores.Numbers:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row.pop("step"): row for row in records}


def without_finals(numbers: stores.Numbers) -> stores.Numbers:
    return {
        step: {key: value for key, value in row.items() if not key.startswith("final/")}
        for step, row in numbers.items()
    }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_killed_training_has_every_step_once_in_every_store(
    bench: Bench, tmp_path: Path, store: str
) -> None:
    out = tmp_path / "run"
    flags = tiny.stage1(out, "--steps", 30, "--save-every", 4, "--log", "wandb", "--log", "mlflow")
    command = [sys.executable, str(ROOT / "launchers/stage1.py"), *map(str, flags)]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not list((out / "checkpoints").glob("step-*.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    assert not (out / "run.json").exists()
    ran = bench.stage1(*flags)
    assert ran.code == 0 and "going on from step" in ran.raw, ran.raw
    expected = rows(out)
    assert list(expected) == list(range(1, 31))
    history, summary, config, tags = stores.wandb(out)
    assert history == expected and summary["final/loss"] == expected[30]["loss"]
    assert config["global_batch"] == 4 and "stage1" in tags
    numbers, run = stores.mlflow(store)
    assert without_finals(numbers) == expected and numbers[30]["final/loss"] == expected[30]["loss"]
    assert run.data.params["global_batch"] == "4" and run.info.status == "FINISHED"


def test_stage_2_and_another_log_after_a_stop(bench: Bench, tmp_path: Path, store: str) -> None:
    """TensorBoard alone until it stops; then MLflow alone, which gets the steps before."""
    out = tmp_path / "run"
    flags = tiny.stage2(out, "--steps", 6, "--save-every", 2, "--val-every", 3)
    from gkd_scale.segment import stage2

    def stop(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(stage2.Validator, "_keep_if_best", stop):
        assert "stopped after step" in str(_stop(bench, flags))
    assert list(stores.tensorboard(out)) == list(rows(out))
    ran = bench.stage2(*flags, "--log", "mlflow")
    assert ran.code == 0, ran.raw
    expected = rows(out)
    numbers, _ = stores.mlflow(store)
    assert without_finals(numbers) == expected and list(expected) == list(range(1, 7))
    best = json.loads((out / "best.json").read_text())
    assert numbers[6]["final/best_miou"] == best["miou"]
    assert max(stores.tensorboard(out)) < 6


def _stop(bench: Bench, flags: list[object]) -> Exception:
    from gkd_scale.engine.stop import Stopped

    with pytest.raises(Stopped) as error:
        bench.stage2(*flags)
    return error.value


def test_mistakes_end_before_any_work(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = bench.stage1(*tiny.stage1(out, "--log", "wandbb"))
    assert ran.code == 2 and "did you mean" in ran.raw
    ran = bench.stage1(*tiny.stage1(out, "--log", "none", "--log", "wandb"))
    assert ran.code == 2 and "none is given beside wandb" in ran.raw
    with mock.patch("importlib.util.find_spec", lambda _: None):
        ran = bench.stage2(*tiny.stage2(out, "--log", "mlflow"))
    assert ran.code == 2 and "pip install 'gkd-scale[mlflow]'" in ran.raw
    assert not out.exists()
