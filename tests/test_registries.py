"""Each registered objective, loss, head and method is one file and one row: no other module names it."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from gkd_scale.distill.config import LossConfig
from gkd_scale.distill.losses import DISTANCES
from gkd_scale.distill.objectives.registry import OBJECTIVES
from gkd_scale.segment.heads.registry import HEADS
from gkd_scale.segment.methods.registry import METHODS
from tests.conftest import ROOT

REGISTRIES = {
    "distill/objectives/registry.py": {name: row.make for name, row in OBJECTIVES.items()},
    "distill/losses/__init__.py": DISTANCES,
    "distill/config.py": {
        each.name: each.metadata["term"] for each in fields(LossConfig) if "term" in each.metadata
    },
    "segment/heads/registry.py": {name: row.make for name, row in HEADS.items()},
    "segment/methods/registry.py": {name: row.make for name, row in METHODS.items() if row.make},
}
ELSEWHERE: dict[str, dict[str, str]] = {
    "qsd": {
        "benchmark/config.py": "the form of that name, as flags",
        "distill/certify.py": "a codec is judged by this objective's loss",
        "distill/config.py": "the form of that name, and a section",
        "distill/stage1.py": "the section of that name",
        "distill/teacher_heads.py": "the form of that name",
        "report/teacher.py": "the section of that name",
    },
    "g2sd": {
        "distill/objectives/registry.py": "the objective of that name",
        "segment/methods/registry.py": "the method of that name, which names the objective before it",
    },
    "mse": {
        "benchmark/config.py": "the form of QSD of that name, as flags",
        "distill/config.py": "the form of QSD of that name",
    },
    "linear": {
        "demo/pipeline.py": "the demo's choice",
        "search/config.py": "the probe of that name",
        "segment/probe.py": "the probe of that name",
    },
    "mask2former": {"benchmark/config.py": "the default of a recipe"},
}
"""Modules that name a thing although they are neither its file nor its row, and why."""


@cache
def named_in(path: Path) -> frozenset[str]:
    """Texts in the code of a module, without docstrings, and the modules that it imports."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value, node.value.partition(":")[0]}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{each.name}" for each in node.names)}
        elif isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
    return frozenset(names)


@pytest.mark.parametrize(
    ("row", "name", "make"),
    [(row, name, make) for row, makes in REGISTRIES.items() for name, make in makes.items()],
    ids=lambda value: str(value).rpartition(":")[2],
)
def test_a_registered_thing_is_named_by_its_file_and_its_row(row: str, name: str, make: str) -> None:
    module = make.partition(":")[0]
    package = ROOT / "gkd_scale"
    files = {
        str(path.relative_to(package)) for path in package.rglob("*.py") if named_in(path) & {name, module}
    }
    own = module.removeprefix("gkd_scale.").replace(".", "/") + ".py"
    assert (package / own).is_file() and row in files
    assert files - {own, row} == set(ELSEWHERE.get(name, {})) - {row}


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for path in (ROOT / "gkd_scale").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []
