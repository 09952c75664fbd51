"""What the documents quote from the source is in the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import fences

TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"
SOURCES = [*(ROOT / "gkd_scale").rglob("*.py"), *(ROOT / "tuning").rglob("*.py")]


@pytest.fixture(scope="module")
def strings() -> str:
    """Every string of the source but docstrings; the parts of an f-string one by one."""
    values = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        constants = (
            node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs
        )
        values += [node.value for node in constants if isinstance(node.value, str)]
    return "\0".join(values)


def messages() -> list[str]:
    """The headings of the troubleshooting page that quote a message."""
    return [
        line[4:]
        for line in TROUBLESHOOTING.read_text(encoding="utf-8").splitlines()
        if line.startswith("### ")
    ]


@pytest.mark.parametrize("heading", messages())
def test_each_message_of_the_troubleshooting_page_is_printed_by_the_source(
    heading: str, strings: str
) -> None:
    parts = [part for span in re.findall(r"`([^`]+)`", heading) for part in span.split("…")]
    parts = [part.strip() for part in parts if len(part.strip()) > 3]
    assert max(map(len, parts)) >= 7, heading
    for part in parts:
        assert part in strings, part


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("inside-*.md")), ids=lambda page: page.stem)
def test_a_page_about_a_package_names_what_is_in_it(page: Path) -> None:
    name = page.stem.removeprefix("inside-")
    folder = ROOT / "gkd_scale" / name if (ROOT / "gkd_scale" / name).is_dir() else ROOT / name
    source = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.py"))
    common = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gkd_scale").glob("*.py"))
    text = page.read_text(encoding="utf-8")
    flow = text.partition("## Data flow")[2].partition("\n## ")[0]
    for word in re.findall(r"`([A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*)`", text):
        assert re.search(rf"\b(?:class {word}|{word} =|{word}: )", source + common), word
    for word in re.findall(r"`([a-z_]+)`", flow):
        there = [*folder.rglob(f"{word}.py"), *folder.rglob(word)]
        assert there or re.search(rf"\bdef {word}\b", source), word


def test_every_package_has_a_page() -> None:
    packages = {path.parent.name for path in (ROOT / "gkd_scale").glob("*/__init__.py")}
    assert packages == {path.stem.removeprefix("inside-") for path in (ROOT / "docs").glob("inside-*.md")}


def test_the_folders_that_the_inside_page_lists_exist() -> None:
    blocks = fences((ROOT / "docs/inside.md").read_text(encoding="utf-8"), "text")
    places = [place for block in blocks for place in re.findall(r"^(\S+/)\s", block, re.MULTILINE)]
    assert len(places) == 6 and all((ROOT / place).is_dir() for place in places), places
