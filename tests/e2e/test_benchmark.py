"""A benchmark as a user types it: small, but each command for real, and one method of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import BIN, ROOT, TINY, run

METHODS = ["teacher", "none", "cwd", "g2sd", "gkd"]

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def recipe(weights: Path) -> dict[str, object]:
    data = "{out}/data"
    return {
        "title": "tiny",
        "prepare": [f"gkd-scale make-data {data} --size 32x48 --proxy 8 --train 8 --val 4 --test 2"],
        "teacher": {"name": "vit_tiny_patch16_224", "weights": str(weights), "args": TINY, "norm": "layer"},
        "student": {"name": "vit_tiny_patch16_224", "args": {**TINY, "patch_size": 8}},
        "proxy_images": f"{data}/proxy",
        "source_images": f"{data}/source/train/images",
        "train": [f"embedded:{data}/source/train"],
        "val": [f"embedded:{data}/source/val"],
        "domains": {"night": f"embedded:{data}/unseen_night", "fog": f"embedded:{data}/unseen_fog"},
        "image_size": "32x48",
        "views": 2,
        "head": "linear",
        "teacher_head": True,
        "budget": {"passes": 48, "stage1_batch": 4, "batch": 4},
        "methods": METHODS,
        "seeds": [0],
    }


def test_each_method_gets_its_row_and_the_same_command_has_nothing_left(
    tmp_path: Path, tiny_teacher: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe(tiny_teacher)))
    command = [BIN / "gkd-scale", "benchmark", path, "--out", "out", "--launchers", ROOT / "launchers"]
    first = run(command, tmp_path, timeout=900)
    assert first.code == 0, first.text
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["rows"]) == set(METHODS)
    for row in results["rows"].values():
        assert set(row) == {"in-domain", "night", "fog", "Avg", "minutes"}
        assert 0 <= row["Avg"]["mean"] <= 100 and row["in-domain"]["mean"] and row["minutes"]["mean"]
    assert len(results["seconds"]) > 12
    assert (tmp_path / "out/table.md").read_text().count("\n|") == len(METHODS) + 2
    again = run(command, tmp_path)
    assert again.code == 0 and "$ " not in again.text
