"""The project's documents, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

PAGES = (
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "shards/README.md")),
    *(ROOT / name for name in ("launchers/README.md", "launchers/presets/README.md", "tuning/README.md")),
)
OUTPUTS = {ROOT / "docs/cases.md"}
"""Pages that quote whatever was printed."""
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(
    r"^ {4}((?:OMP_\w+=\S+ )?(?:gkd-scale|deepspeed|torchrun|python) (?:\\\n|[^\n])*)", re.MULTILINE
)


def fences(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for name, body in _FENCE.findall(text) if name == language]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", text)


def command_lines(path: Path) -> Iterator[list[str]]:
    """The words of every command in a page: of ``sh`` blocks, of blocks without a language, and indented."""
    text = path.read_text(encoding="utf-8")
    blocks = [*fences(text, "sh"), *_BLOCK.findall(prose(text))]
    blocks += [block for block in fences(text, "") if block.startswith("python ")]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield words
