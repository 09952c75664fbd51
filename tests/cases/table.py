"""The table of all cases as a Markdown page."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path

from tests.cases.case import CASES, Case
from tests.conftest import ROOT

TABLE = ROOT / "docs" / "cases.md"
_NO_KINDS = ("case", "table", "test_cases", "tiny", "__main__")


def all_cases() -> list[Case]:
    """Every case of every module in this folder, by kind."""
    import tests.cases as package

    for module in sorted(pkgutil.iter_modules([str(Path(package.__file__).parent)]), key=lambda m: m.name):
        if module.name not in _NO_KINDS:
            importlib.import_module(f"tests.cases.{module.name}")
    return sorted(CASES, key=lambda each: each.kind)


def row(each: Case, outcome: str) -> str:
    """A case's line in the table."""
    return f"| {_cell(each.what)} | {_cell(outcome)} |"


def page(outcomes: Mapping[Case, str]) -> str:
    """The whole page."""
    lines = [
        f"# {len(outcomes)} things that users brought, and what becomes of each",
        "",
        "From public bug reports. Made by `python -m tests.cases`, which runs every case; a test compares.",
        "*ok* means that the command ended with status 0 and that the test found its result to be right.",
    ]
    kind = None
    for each, outcome in outcomes.items():
        if each.kind != kind:
            kind = each.kind
            lines += ["", f"## {kind}", "", "| case | outcome |", "|---|---|"]
        lines.append(row(each, outcome))
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
