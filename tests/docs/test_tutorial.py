"""The tutorial's commands, run as they stand there, and the notebook."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import nbformat
import pytest

from tests import warm
from tests.conftest import ROOT, run
from tests.docs.pages import command_lines, fences

pytestmark = pytest.mark.e2e
TUTORIAL = ROOT / "docs/tutorial.md"


def test_the_tutorial_runs_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    (tmp_path / "launchers").symlink_to(ROOT / "launchers")
    commands = [words for words in command_lines(TUTORIAL) if words[0] not in ("make", "source")]
    assert len(commands) == 11
    for words in commands:
        result = warm.run(words, tmp_path)
        assert result.code == 0, f"{shlex.join(words)}\n{result.text}"
    folder = tmp_path / "tutorial"
    assert {"night", "fog"} <= json.loads((folder / "head/evaluation.json").read_text()).keys()
    assert len(list((folder / "predictions/masks").rglob("*.png"))) == 8
    assert (folder / "tokens.png").is_file() and (folder / "report.html").is_file()
    (code,) = fences(TUTORIAL.read_text(encoding="utf-8"), "python")
    result = run([sys.executable, "-W", "error", "-c", f"{code}\nprint(classes.shape)"], tmp_path)
    assert (result.code, result.text.strip()) == (0, "(96, 128)"), result.text


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    out = tmp_path / "run.ipynb"
    result = run([sys.executable, ROOT / "docs/site/notebook.py", "--out", out], tmp_path)
    assert result.code == 0, result.text
    now, notebook = (nbformat.read(path, as_version=4) for path in (out, ROOT / "docs/quickstart.ipynb"))
    for cell, before in zip(now.cells, notebook.cells, strict=True):
        assert cell.source == before.source
        assert kinds(cell) == kinds(before), f"{cell.source}\nrun python docs/site/notebook.py"


def kinds(cell: nbformat.NotebookNode) -> set[tuple[str, ...]]:
    """What sorts of outputs a cell has; one print may come as two."""
    return {(output.output_type, *sorted(output.get("data", {}))) for output in cell.get("outputs", [])}
