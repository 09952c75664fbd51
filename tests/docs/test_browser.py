"""Pages in a real browser, where there is one."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from gkd_scale.report import page
from tests.conftest import ROOT

pytest.importorskip("playwright")
pytest.importorskip("axe_playwright_python")


@pytest.fixture(scope="module")
def script() -> dict[str, object]:
    """The names of docs/site/browser.py."""
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium here")
    return runpy.run_path(str(ROOT / "docs/site/browser.py"))


def test_a_page_of_the_report_has_no_fault_and_a_bad_one_has(
    script: dict[str, object], tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.html", tmp_path / "bad.html"
    good.write_text(page.sections("A title", "A note.", [("Part", "", "<p>Text</p>")]), encoding="utf-8")
    bad.write_text(
        page.sections("A title", "A note.", [("Part", "", "<img src='gone.png'>")]), encoding="utf-8"
    )
    with script["browser"](shutil.which("chromium")) as chrome:  # type: ignore[operator]
        assert script["faults"](chrome, good) == []  # type: ignore[operator]
        faults = " ".join(script["faults"](chrome, bad, "dark"))  # type: ignore[operator]
    assert "image-alt" in faults and "404" in faults
