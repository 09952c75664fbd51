"""Three steps of stage 2 with every method, under DeepSpeed: what is logged, and what is exported."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from gkd_scale.models.weights import read_state_dict
from gkd_scale.segment.config import METHODS
from gkd_scale.segment.export import load_card
from tests.conftest import ROOT, run

from ..support import Blocks, write_folder  # noqa: TID252

pytestmark = pytest.mark.e2e


def test_every_method_trains_and_exports_a_plain_segmenter(tmp_path: Path, tiny_teacher: Path) -> None:
    write_folder(tmp_path / "data", Blocks(6))
    result = run([sys.executable, "-m", "tests.segment.methods.all_methods", tmp_path, tiny_teacher], ROOT)
    assert result.code == 0, result.text
    runs = [json.loads(line) for line in result.text.splitlines() if line.startswith('{"run"')]
    assert [each["run"] for each in runs] == ["teacher", *METHODS, "bfloat16"]
    for each in runs:
        steps = [line for line in each["steps"] if "loss" in line]
        assert len(steps) == 3 and all(math.isfinite(line["loss"]) for line in steps)
        assert ("loss_task" in steps[0]) == (each["run"] not in ("teacher", "none"))
        out = tmp_path / each["run"]
        assert load_card(out).adapt == ("frozen" if each["run"] == "teacher" else "full")
        for file in ("backbone.safetensors", "head.safetensors"):
            assert set(read_state_dict(out / file)) == set(read_state_dict(tmp_path / "teacher" / file))
    full, half = (
        next(each["steps"][0]["loss"] for each in runs if each["run"] == name)
        for name in ("vanilla-kd", "bfloat16")
    )
    assert full != half == pytest.approx(full, rel=0.02), "the teacher alone computes in bfloat16"
