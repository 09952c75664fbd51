"""The site builds without a warning and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gkd_scale
from gkd_scale.cli import COMMANDS
from tests.conftest import ROOT

_LOAD = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b[^>]*\bhref=[\"']?(?:https?:)?//"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it."""
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        ROOT / "docs/site/mkdocs.yml",
        "-d",
        out,
    ]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert "WARNING" not in result.stdout, result.stdout
    return out


def test_no_page_loads_anything_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        match = _LOAD.search(page.read_text(encoding="utf-8"))
        assert match is None, f"{page}: {match}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", sheet.read_text(encoding="utf-8")), sheet


def test_the_reference_has_every_public_name_and_every_command(site: Path) -> None:
    api = (site / "api.html").read_text(encoding="utf-8")
    for name in {*gkd_scale.__all__} - {"__version__"}:
        assert re.search(rf"<h2[^>]*>\s*gkd_scale\.{name}\b", api), name
    assert ":class:" not in api and ":mod:" not in api
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for name in [f"gkd-scale {name}" for name in COMMANDS] + ["launchers/stage1.py", "tuning/search.py"]:
        assert f"<code>{name}</code>" in commands, name
    assert "--teacher-norm" in commands and "--num-trials" in commands


def test_links_to_files_of_the_repository_lead_to_copies_of_them(site: Path) -> None:
    page = (site / "launchers.html").read_text(encoding="utf-8")
    assert 'href="files/launchers/students.yaml"' in page
    assert (site / "files/launchers/students.yaml").read_bytes() == (
        ROOT / "launchers/students.yaml"
    ).read_bytes()


def test_the_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in (ROOT / "docs/images").iterdir()]
    assert max(sizes) < 150_000 and sum(sizes) < 1_000_000
