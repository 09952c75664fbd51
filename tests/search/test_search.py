"""The door itself: mistakes in this process, searches as a user starts them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gkd_scale import config
from gkd_scale.distill.config import Stage1Config
from gkd_scale.models.students import load_student
from gkd_scale.segment import probe
from gkd_scale.segment.datasets import registry
from tests.commands import search_main
from tests.conftest import ROOT, TINY, Result, environment, run, tiny_args

SCRIPT = [sys.executable, str(ROOT / "tuning/search.py")]
SPACE = "optim.lr: choice(1e-3, 3e-3, 1e-2)\nglobal_batch: 4\n"


def flags(cache: Path, domains: Path, folder: Path, *more: object, space: str = SPACE) -> list[str]:
    """A search of a few seconds a trial, into ``folder/out``."""
    path = folder / "space.yaml"
    path.write_text(space)
    options = [
        "--space",
        path,
        "--cache",
        cache,
        "--student",
        "vit_tiny_patch16_224",
        "--ds-config",
        "zero0.json",
    ]
    data = ["--train", f"folder:{domains / 'fit'}", "--val", f"folder:{domains / 'val'}"]
    budget = ["--steps", 8, "--report-every", 4, "--num-trials", 3]
    parts = [*options, "--student-args", *tiny_args(), *data, *budget, "--out", folder / "out", *more]
    return [str(part) for part in parts]


def rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out/trials.parquet").to_pylist()


def test_only_the_search_imports_ray_tune() -> None:
    """import-linter sees ray as a whole."""
    users = {
        path.relative_to(ROOT).parts[:2]
        for path in [*(ROOT / "gkd_scale").rglob("*.py"), *(ROOT / "tuning").rglob("*.py")]
        if re.search(r"^\s*(from ray import tune|(from|import) ray\.tune)\b", path.read_text(), re.MULTILINE)
    }
    assert users == {("gkd_scale", "search")}


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resources", "cpu=640"], "a trial needs 640 CPU cores"),
        (["--resources", "gpu=640"], "GPU"),
        (["--resources", "cpus=1"], "did you mean 'cpu'"),
        (["--resources", "gpu=0.5", "--workers-per-trial", "2"], "which NCCL refuses"),
        (["--cache", "nowhere"], "nowhere does not exist"),
        (["--cache", "file://{domains}/none", "--mirror", "{domains}/mirror"], "does not exist"),
        (["--test", "x=folder:{domains}/val"], "named both in --val and in --test"),
        (["--test", "x=folder:{domains}/fit/../val"], "named both in --val and in --test"),
        (["--val", "x=folder:{domains}/away", "--test", "x=folder:elsewhere"], "named both"),
        (["--val", "embedded:data/unseen_night"], "for testing only"),
        (["--val", "again=folder:{domains}/fit"], "what the probe is fitted on"),
        (["--space", "qsd.yaml", "--search", "grid"], "needs choices"),
        (["--space", "qsd.yaml", "--scheduler", "pbt"], "cannot change in the middle of a run"),
        (["--student", "vit_tinny_patch16_224"], "did you mean"),
        (["--workers-per-trial", "3", "--cpus", "8"], "a global batch of 4"),
        (["--report-every", "9"], "more than --steps 8"),
        (["--resume"], "no search to go on with"),
        (["--schedular", "asha"], "did you mean '--scheduler'"),
    ],
)
def test_a_mistake_is_one_error_before_ray_starts(
    more: list[str],
    message: str,
    tiny_cache: Path,
    domains: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = flags(tiny_cache, domains, tmp_path, *(each.format(domains=domains) for each in more))
    assert search_main(arguments) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("error:") == 1
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- searches


@pytest.fixture(scope="module")
def search(
    tiny_cache: Path, tiny_teacher: Path, domains: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result, list[str]]:
    """A grid of two trials of two ranks, of which one starts from weights so large that its loss is not
    finite; the cache is behind a URL."""
    folder = tmp_path_factory.mktemp("search")
    large = {name: value * 1e30 for name, value in load_file(tiny_teacher).items()}
    save_file(large, folder / "large.safetensors")
    more = ("--search", "grid", "--scheduler", "none", "--workers-per-trial", 2, "--resources", "cpu=0.5")
    more = (*more, "--mirror", folder / "mirror")
    weights = f"student_weights: choice({tiny_teacher}, {folder / 'large.safetensors'})"
    space = f"{weights}\noptim: {{lr: 1e-3, warmup: 0}}\nglobal_batch: 4\n"
    arguments = flags(tiny_cache, domains, folder, *more, space=space)
    arguments[arguments.index(str(tiny_cache))] = tiny_cache.as_uri()
    return folder, run([*SCRIPT, *arguments], folder), arguments


def test_a_search_ends_with_a_summary_and_shows_what_failed(search: tuple[Path, Result, list[str]]) -> None:
    folder, result, _ = search
    assert result.code == 0, result.text
    assert "failed: loss" in result.text and "not finite" in result.text
    table = rows(folder)
    good = [row for row in table if row["status"] == "done"]
    assert [row["step"] for row in good] == [4, 8]
    assert all(row["miou"] > 0 and row["loss"] > 0 and row["seconds"] > 0 and row["host"] for row in good)
    (bad,) = [row for row in table if row["status"] == "failed"]
    assert bad["miou"] is None and bad["config.student_weights"].endswith("large.safetensors")
    page = (folder / "out/summary.html").read_text()
    assert page.count("<svg") == 2 and "http" not in page and "src=" not in page


def test_the_best_is_a_config_that_stage_1_takes(search: tuple[Path, Result, list[str]]) -> None:
    path = search[0] / "out/best.yaml"
    cfg = config.parse(Stage1Config, ["--config", str(path)], prog="stage1.py", description="")
    assert (cfg.optim.lr, cfg.run.steps, cfg.run.global_batch) == (1e-3, 8, 4)
    assert yaml.safe_load(path.read_text())["student_args"] == TINY


def test_the_objective_is_that_of_the_backbone_that_a_run_exports(
    search: tuple[Path, Result, list[str]], domains: Path
) -> None:
    folder = search[0]
    last = max((row for row in rows(folder) if row["status"] == "done"), key=lambda row: row["step"])
    student = load_student(
        "vit_tiny_patch16_224",
        (32, 48),
        (2, 3),
        weights=str(folder / "out/trials" / last["trial"]),
        args=dict(TINY),
    )
    student.eval()
    fit, val = (
        probe.load(registry.open_dataset(f"folder:{domains / name}"), (32, 48), most=100)
        for name in ("fit", "val")
    )
    with torch.no_grad():
        again = 100 * probe.probe(student, student.grid, fit, val).miou()
    assert again == pytest.approx(last["miou"], abs=1e-6)


def test_the_same_command_on_a_finished_search_trains_nothing(search: tuple[Path, Result, list[str]]) -> None:
    folder, _, arguments = search
    before = (folder / "out/trials.parquet").read_bytes()
    result = run([*SCRIPT, *arguments], folder)
    assert result.code == 0 and "already complete" in result.text
    assert (folder / "out/trials.parquet").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused(
    search: tuple[Path, Result, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search_main([*search[2], "--seed", "7"]) == 2
    assert "seed: 0 then, 7 now" in capsys.readouterr().err


@pytest.mark.slow
def test_trials_that_cannot_run_are_shown_with_their_cause(
    tiny_cache: Path, domains: Path, tmp_path: Path
) -> None:
    """30 million channels: no memory."""
    space = "student_args.embed_dim: choice(30000000, 48)\nglobal_batch: 4\n"
    more = ("--search", "grid", "--scheduler", "none", "--retries", 0)
    result = run([*SCRIPT, *flags(tiny_cache, domains, tmp_path, *more, space=space)], tmp_path)
    assert result.code == 0, result.text
    assert "done" in result.text
    causes = {row["config.student_args.embed_dim"]: row["cause"] for row in rows(tmp_path)}
    assert causes[48] is None
    assert "memory" in causes[30000000]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("student_args.embed_dim: choice(50, 48)", "student_args.embed_dim 50"),
        ("student_args.mlp_ratoi: uniform(2, 4)", "mlp_ratoi"),
        ("student: choice(vit_tiny_patch16_224, vit_tinny)", "did you mean"),
    ],
)
def test_a_student_that_cannot_be_built_is_refused_before_ray_starts(
    space: str,
    message: str,
    tiny_cache: Path,
    domains: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """50 channels are no multiple of 3 heads."""
    assert search_main(flags(tiny_cache, domains, tmp_path, space=f"{space}\nglobal_batch: 4\n")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_search_goes_on(
    how: signal.Signals, tiny_cache: Path, domains: Path, tmp_path: Path
) -> None:
    """Ended trials are not touched again; the others go on from their checkpoints; all end."""
    budget = ("--steps", 160, "--report-every", 16, "--cpus", 1, "--scheduler", "none")
    command = [*SCRIPT, *flags(tiny_cache, domains, tmp_path, *budget)]
    code = kill(how, command, tmp_path, when="trial 2 step 16/")
    assert code == (130 if how == signal.SIGINT else -9)
    table = {row["trial"]: row for row in rows(tmp_path)}
    (trial,) = [name for name, row in table.items() if row["number"] == 1]
    metrics = tmp_path / "out/trials" / trial / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    result = run(command, tmp_path, timeout=500)
    assert result.code == 0, result.text
    assert metrics.stat().st_mtime_ns == before
    logs = "".join(path.read_text() for path in (tmp_path / "out/trials").glob("*/log-0.txt"))
    assert logs.count("going on from step") == 1
    assert json.loads((tmp_path / "out/summary.json").read_text())["trials"]["done"] == 3
    for path in (tmp_path / "out/trials").glob("*/metrics.jsonl"):
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 161))


def kill(how: signal.Signals, command: list[str], folder: Path, *, when: str) -> int:
    """Start ``command``, send it ``how`` once it has said ``when``; its exit code."""
    log = folder / "log"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, env=environment(), stdout=file, stderr=file, cwd=folder)
        try:
            wait_for(process, log, when)
            process.send_signal(how)
            return process.wait(120)
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "trials"), [("hyperband", 5), ("pbt", 3)])
def test_a_killed_search_of_trials_that_wait_for_each_other_goes_on(
    scheduler: str, trials: int, tiny_cache: Path, domains: Path, tmp_path: Path
) -> None:
    """Tune does not restore these schedulers, and both pause trials: none may be forgotten."""
    budget = ("--steps", 60, "--report-every", 20, "--scheduler", scheduler, "--num-trials", trials)
    space = "optim.lr: loguniform(1e-4, 1e-2)\nglobal_batch: 4\n"
    command = [*SCRIPT, *flags(tiny_cache, domains, tmp_path, *budget, space=space)]
    kill(signal.SIGKILL, command, tmp_path, when=f"trial {trials - 1} step 20/")
    result = run(command, tmp_path, timeout=500)
    assert result.code == 0, result.text
    last = {row["trial"]: row for row in rows(tmp_path)}
    assert len(last) == trials
    assert {row["status"] for row in last.values()} <= {"done", "stopped early"}
    assert any(row["step"] == 60 for row in last.values())
    assert all(row["status"] == "done" for row in last.values()) or scheduler == "hyperband"


@pytest.mark.slow
def test_a_population_goes_on_from_the_better_ones(tiny_cache: Path, domains: Path, tmp_path: Path) -> None:
    space = "optim.lr: loguniform(1e-5, 1e-1)\nglobal_batch: 4\n"
    result = run(
        [*SCRIPT, *flags(tiny_cache, domains, tmp_path, "--scheduler", "pbt", space=space)], tmp_path
    )
    assert result.code == 0, result.text
    assert sum(row["step"] == 8 for row in rows(tmp_path)) == 3
