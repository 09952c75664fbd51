"""benchmarks/gpu.py: every part runs with tiny models on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import warm

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"


def test_every_part_fills_its_rows(tmp_path: Path) -> None:
    result = warm.run([sys.executable, SCRIPT, "--tiny", "--out", tmp_path / "gpu.md"], tmp_path)
    assert result.code == 0, result.text
    table = (tmp_path / "gpu.md").read_text()
    for row in (
        "N = 64, naive",
        "shared masked pass",
        "from a int8 cache",
        "--compile",
        "cache-teacher",
        "fpn head",
    ):
        assert row in table
    assert table.count("(ok)") == 2


def test_without_cuda_one_line_says_so(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--out", tmp_path / "gpu.md"]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert result.returncode == 2
    assert "no CUDA device here" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "gpu.md").exists()
