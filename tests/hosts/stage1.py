"""The tiny stage 1 that each launcher runs: its flags, its steps, and what has to be equal."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import ROOT, tiny_args

SCRIPT = ROOT / "launchers/stage1.py"
STEPS = 40
SAVE_EVERY = 10


def flags(cache: Path, out: Path) -> list[object]:
    student = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args()]
    rest = ["--out", out, "--global-batch", 4, "--steps", STEPS, "--save-every", SAVE_EVERY, "--workers", 1]
    return ["--cache", cache, "--ds-config", "zero1.json", *student, *rest]


def losses(out: Path) -> list[tuple[int, float]]:
    """Step and loss of each whole line of ``metrics.jsonl``."""
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    rows = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [(row["step"], row["loss"]) for row in rows]


def assert_same(out: Path, expected: Path) -> None:
    """Both runs are done, with the same losses and the same bytes of weights."""
    assert json.loads((out / "run.json").read_text())["status"] == "complete"
    assert losses(out) == losses(expected)
    for name in ("backbone.safetensors", "heads.safetensors"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
