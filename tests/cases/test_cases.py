"""Every case, and the table of the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.case import Bench, Case
from tests.cases.table import TABLE, all_cases, row


@pytest.mark.parametrize("each", [pytest.param(each, id=f"{each.kind}: {each.what}") for each in all_cases()])
def test_case(each: Case, tmp_path: Path) -> None:
    outcome = str(each.run(Bench(tmp_path)))
    assert row(each, outcome) in TABLE.read_text(encoding="utf-8"), f"{outcome}: run python -m tests.cases"


def test_the_table_holds_these_cases_and_no_others() -> None:
    text = TABLE.read_text(encoding="utf-8")
    assert f"# {len(all_cases())} things" in text
