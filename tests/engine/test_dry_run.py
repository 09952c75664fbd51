"""``--dry-run``: what it says, that it refuses what a run refuses, and that it writes nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gkd_scale import config
from gkd_scale.distill import stage1
from gkd_scale.distill.config import Stage1Config
from gkd_scale.engine.checkpoint import path as checkpoint_path
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.world import Place
from gkd_scale.errors import ConfigError, DamageError, GkdError, RunError
from gkd_scale.files import claim
from tests import warm
from tests.cases.case import world_of_one
from tests.conftest import ROOT, TINY, tiny_args
from tests.e2e.test_stage2 import write_camvid


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with world_of_one() as runtime:
        yield runtime


def train(runtime: Runtime, cache: Path, out: Path, **changes: Any) -> None:
    values = {
        "ds_config": "zero2.json",
        "cache": [cache],
        "student": "vit_tiny_patch16_224",
        "student_args": dict(TINY),
        "out": out,
        "steps": 6,
        "global_batch": 4,
        "save_every": 2,
        "workers": 1,
    }
    cfg = config.build(Stage1Config, {**values, **changes}, "the test")
    stage1.train(cfg, runtime, ROOT / "launchers")


def files_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_a_dry_run_says_what_a_run_takes_and_writes_nothing(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "below" / "run"
    train(runtime, tiny_cache, out, dry_run=True, ledger=True, ds_config="zero0.json")
    output = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert not (tmp_path / "below").exists()
    for fact in (
        "1 rank",
        "zero_optimization.stage=0",
        "parameters are trained",
        "memory a GPU",
        "a rank and step",
    ):
        assert fact in output
    assert "6; 2.00 epochs of 12 images" in re.sub(r"[│ ]+", " ", output)


def test_a_run_that_was_begun_is_compared_and_left_as_it_is(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(runtime, tiny_cache, out)
    (out / "run.json").unlink()
    checkpoint_path(out / "checkpoints", 6).unlink()
    before = files_below(out)
    train(runtime, tiny_cache, out, dry_run=True)
    output = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "6, 2 left after the checkpoint of step 4" in output
    with pytest.raises(RunError, match=r"ema: 0.99996 then, 0.5 now"):
        train(runtime, tiny_cache, out, dry_run=True, ema=0.5)
    with claim(out), pytest.raises(RunError, match="another process is writing"):
        train(runtime, tiny_cache, out, dry_run=True)
    assert files_below(out) == before
    checkpoint_path(out / "checkpoints", 4).write_bytes(b"torn")
    with pytest.raises(DamageError, match="cannot be read"):
        train(runtime, tiny_cache, out, dry_run=True)


def test_what_a_run_refuses_a_dry_run_refuses_by_the_same_error(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for changes in ({"out": tmp_path / "file"}, {"student": "vit_tni"}, {"teacher": "another"}, {"views": 3}):
        errors: list[str] = []
        for dry in (True, False):
            with pytest.raises(GkdError) as error:
                train(runtime, tiny_cache, **{"out": tmp_path / "run", **changes, "dry_run": dry})  # type: ignore[arg-type]
            errors.append(str(error.value))
        assert errors[0] == errors[1]
    assert not (tmp_path / "run").exists()


def test_a_world_is_planned_by_one_process_and_only_in_a_dry_run() -> None:
    with pytest.raises(ConfigError, match="--world is 8 without --dry-run"):
        config.build(Stage1Config, {"world": 8})
    with pytest.raises(ConfigError, match="planned by one process, and this launch has 2"):
        Runtime._plan(Place(0, 2, 0, "127.0.0.1", 29500), 512)


@pytest.mark.e2e
def test_stage_1_for_512_ranks_on_one(tiny_cache: Path, tmp_path: Path) -> None:
    """fp16, ZeRO++ and a second shard: what only GPUs can run is checked all the same."""
    (tmp_path / "fp16.json").write_text(
        '{"fp16": {"enabled": true}, "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8, '
        '"zero_quantized_weights": true, "reduce_bucket_size": 1000}}'
    )
    command = [
        *(sys.executable, ROOT / "launchers/stage1.py", "--dry-run", "--cache", tiny_cache, "--out", "run"),
        *("--student", "vit_tiny_patch16_224", "--student-args", *tiny_args(), "--ds-config", "fp16.json"),
    ]
    result = warm.run([*command, "--world", 512, "--global-batch", 1024], tmp_path)
    output = re.sub(r"[│\s]+", " ", result.text)
    assert result.code == 0, result.text
    assert "512 ranks, of which rank 0 is measured here" in output
    assert "1024 images: micro batch 2, accumulation 1, ZeRO 3, float16" in output
    assert "on a node of 8" in output and "Traceback" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp16.json"]


@pytest.mark.e2e
def test_stage_2_for_64_ranks_on_one(tmp_path: Path) -> None:
    data = write_camvid(tmp_path / "data", 6, 0)
    command = [
        *(sys.executable, ROOT / "launchers/stage2.py", "--dry-run", "--world", 64),
        *("--ds-config", "zero2.json", "--global-batch", 256),
        *("--train", f"camvid:{data}", "--val", f"camvid:{data}", "--sampling", "rare-class"),
        *("--student", "vit_tiny_patch16_224", "--student-args", *tiny_args(), "img_size=[48, 64]"),
        *("--method", "none", "--image-size", "48x64", "--head", "linear", "--out", "run"),
    ]
    result = warm.run(command, tmp_path)
    output = re.sub(r"[│\s]+", " ", result.text)
    assert result.code == 0, result.text
    assert (
        "64 ranks" in output and "256 images: micro batch 4" in output and "read from the cache" not in output
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
