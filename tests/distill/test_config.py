"""The options of stage 1: one student or several."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gkd_scale.config import parse
from gkd_scale.distill.config import Stage1Config, StudentConfig
from gkd_scale.errors import ConfigError
from tests.conftest import ROOT


def stage1(*argv: str) -> Stage1Config:
    return parse(Stage1Config, argv, prog="stage1.py", description="")


def test_one_student_by_name_is_the_run_itself() -> None:
    cfg = stage1("--student", "resnet18", "--out", "runs/x")
    assert cfg.per_student() == [cfg] and cfg.run.out == Path("runs/x")


def test_flags_hold_for_all_students() -> None:
    cfg = stage1("--student", "a", "--student", "hf-hub:b/c", "--student-args", "depth=2", "--out", "runs/x")
    one, two = cfg.per_student()
    assert (one.student.names, one.run.out) == (["a"], Path("runs/x/a"))
    assert (two.student.names, two.run.out) == (["hf-hub:b/c"], Path("runs/x/hf-hub:b_c"))
    assert one.student.args == two.student.args == {"depth": 2}


def test_the_example_of_several_students_says_more_of_each() -> None:
    cfg = stage1("--config", str(ROOT / "launchers/students.yaml"), "--drop-path", "0.2")
    tiny, small, resnet = cfg.per_student()
    assert [one.run.out.name for one in (tiny, small, resnet)] == [
        "vit_tiny_patch16_224",
        "small",
        "resnet50",
    ]
    assert [one.student.drop_path for one in (tiny, small, resnet)] == [0.2, 0.1, 0.2]
    assert resnet.student.weights == "pretrained" and tiny.student.weights is None
    assert small.source.cache == ["caches/proxy"] and small.run.global_batch == 512


@pytest.mark.parametrize("script", sorted((ROOT / "launchers/slurm").glob("*.sbatch")))
def test_slurm_examples_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("flag", ["--optim.warmup-lr", "--optim.final-lr"])
def test_the_peak_is_the_largest_learning_rate(flag: str) -> None:
    with pytest.raises(ConfigError, match="above the peak"):
        stage1("--lr", "1e-3", flag, "1e-2")
    assert stage1("--lr", "1e-7").optim.lr == 1e-7


def test_a_student_from_scratch_has_a_higher_learning_rate_by_default() -> None:
    from gkd_scale.distill.stage1 import default_lr

    scratch, other = Stage1Config(), Stage1Config(student=StudentConfig(weights="pretrained"))
    assert [default_lr(scratch, batch) for batch in (8, 512, 4096)] == [1e-3, 1e-3, 4e-3]
    assert [default_lr(other, batch) for batch in (8, 512, 4096)] == [2.5e-4, 5e-4, 4e-3]
