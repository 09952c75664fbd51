from __future__ import annotations

from pathlib import Path

import pytest

from gkd_scale.cache.plan import make_plan
from gkd_scale.errors import DataError

from .bad_input import TABLE, outcomes, table


def test_the_table_of_the_docs_is_what_happens(tmp_path: Path) -> None:
    found = outcomes(tmp_path)
    assert len(found) >= 45
    assert table(found) == TABLE.read_text(encoding="utf-8"), "python -m tests.cache.bad_input writes it"


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "does not exist"), ("file", "is not a folder"), ("empty", "holds no images")],
)
def test_folders_that_are_none(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=said):
        make_plan(tmp_path / name, 4)
