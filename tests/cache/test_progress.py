"""What a build shows and reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.progress import BuildReport

from .support import TinyTeacher, config

Whole = tuple[Path, BuildReport]


def test_report_says_what_was_built_and_what_could_not_be_read(whole: Whole) -> None:
    out, report = whole
    assert (report.images, report.views, report.shards, report.shards_built) == (12, 2, 6, 6)
    assert report.samples_built == 20
    assert set(report.errors) == {"b/text.jpg", "b/truncated.png"}
    text = "\n".join(report.lines())
    assert "2 of 12 images could not be read" in text and str(out / "manifest.parquet") in text
    assert "b/text.jpg: not an image" in text


def test_progress_shows_rates(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(config(images, tmp_path), TinyTeacher())
    output = capsys.readouterr().out
    assert all(word in output for word in ("24/24", "images/s", "MB/s", "read", "teacher", "write", "ETA"))
