from __future__ import annotations

from pathlib import Path

import pytest

from gkd_scale.cache.plan import make_plan
from gkd_scale.errors import DataError

from .bad_input import TABLE, outcomes, table


def test_the_table_of_the_docs_is_what_happens(tmp_path: Path) -> None:
    rows = outcomes(tmp_path)
    assert len(rows) >= 45
    assert table(rows) == TABLE.read_text(encoding="utf-8"), "python -m tests.cache.bad_input writes it"


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "does not exist"), ("file", "is not a folder"), ("empty", "holds no images")],
)
def test_folders_that_are_none(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=message):
        make_plan(tmp_path / name, 4)
