"""Stage 1 with one image a micro batch on two ranks: one of the two has nothing masked in each step.

One start of two processes for all of it, with DeepSpeed and gloo as a launcher would have them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gkd_scale.config import build
from gkd_scale.distill import stage1
from gkd_scale.distill.config import Stage1Config
from gkd_scale.engine import runlog
from gkd_scale.engine.runtime import free_port
from gkd_scale.errors import ConfigError
from tests import warm
from tests.cases.case import world_of_one
from tests.conftest import ROOT, TINY
from tests.ranks import become_rank

RUNS: dict[str, dict[str, Any]] = {
    "zero1": {"ds_config": "zero1.json"},
    "zero2": {"ds_config": "zero2.json"},
    "zero3": {"ds_config": "zero3.json"},
    "convolutional": {"ds_config": "zero2.json", "student": "test_resnet", "student_args": {}},
    "rare": {"ds_config": "zero3.json", "global_batch": 4, "mask": {"probability": 0.25}},
    "joined2": {"ds_config": "zero2.json", "teachers": 2},
    "joined3": {"ds_config": "zero3.json", "teachers": 2, "loss": {"mask_weight": 1.0, "teacher_drop": 0.4}},
}

Caches = tuple[Path, Path]


@pytest.fixture(scope="module")
def caches(tiny_cache: Path, finer_cache: Path) -> Caches:
    return tiny_cache, finer_cache


def config(caches: Caches, out: Path, teachers: int = 1, **changes: Any) -> Stage1Config:
    values = {
        "cache": list(caches[:teachers]),
        "student": "vit_tiny_patch16_224",
        "student_args": dict(TINY),
        "out": out,
        "steps": 3,
        "global_batch": 2,
        "workers": 1,
        "log": ["none"],
        "loss": {"mask_weight": 1.0},
    }
    return build(Stage1Config, {**values, **changes}, "the test")


def _rank(rank: int, port: int, caches: Caches, root: Path) -> None:
    runtime = become_rank(rank, port)
    for name, changes in RUNS.items():
        stage1.train(config(caches, root / name, **changes), runtime, ROOT / "launchers")


@pytest.fixture(scope="module")
def two(caches: Caches, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    warm.spawn(_rank, free_port(), caches, root)
    return root


def losses(out: Path) -> list[float]:
    rows = runlog.read(out / "metrics.jsonl")
    assert len(rows) == 3
    return [value for row in rows for key, value in row.items() if key.startswith(("loss", "grad_norm"))]


@pytest.mark.parametrize("name", RUNS)
def test_a_micro_batch_of_one_on_two_ranks_is_half_of_the_batch_of_one_rank(
    name: str, two: Path, caches: Caches, tmp_path: Path
) -> None:
    """But for BatchNorm, whose statistics are those of a micro batch."""
    changes = {**RUNS[name], "ds_config": "zero0.json"}
    with world_of_one() as runtime:
        stage1.train(config(caches, tmp_path / "one", **changes), runtime, ROOT / "launchers")
    values = losses(two / name)
    if name == "convolutional":
        assert torch.isfinite(torch.tensor(values)).all()
        return
    assert values == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    token = "student.mask.token"
    one, both = (load_file(folder / "heads.safetensors")[token] for folder in (tmp_path / "one", two / name))
    torch.testing.assert_close(one, both, atol=1e-5, rtol=1e-4)


def test_a_global_batch_without_a_masked_image_is_refused(caches: Caches, tmp_path: Path) -> None:
    with world_of_one() as runtime, pytest.raises(ConfigError, match="masks no image"):
        changes = {"ds_config": "zero0.json", "global_batch": 1}
        stage1.train(config(caches, tmp_path / "run", **changes), runtime, ROOT / "launchers")
    assert not (tmp_path / "run/run.json").exists()


def test_a_finished_run_of_such_a_batch_stays_finished(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"ds_config": "zero0.json", "global_batch": 1}
    with world_of_one() as runtime:
        with monkeypatch.context() as patch:
            patch.setattr(stage1, "_require_masked", lambda *_: None)  # as earlier versions had it
            stage1.train(config(caches, tmp_path / "run", **changes), runtime, ROOT / "launchers")
        before = (tmp_path / "run/run.json").read_bytes()
        stage1.train(config(caches, tmp_path / "run", **changes), runtime, ROOT / "launchers")
    assert (tmp_path / "run/run.json").read_bytes() == before
