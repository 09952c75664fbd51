"""``ADAPTER:PATH``, and several datasets as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gkd_scale.errors import ConfigError, DataError
from gkd_scale.segment.datasets.registry import ADAPTERS, open_all, open_dataset, parse

from ..support import Blocks, write_folder  # noqa: TID252


def test_parse() -> None:
    assert parse("folder:a/b") == ("folder", Path("a/b"))
    assert parse("camvid:C:/x") == ("camvid", Path("C:/x"))


@pytest.mark.parametrize("ref", ["a/b", "folder:", "folder"])
def test_malformed(ref: str) -> None:
    with pytest.raises(ConfigError, match="not ADAPTER:PATH"):
        parse(ref)


def test_unknown_adapter_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'camvid'"):
        parse("camvit:x")


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_every_adapter_says_that_a_folder_is_missing(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        open_dataset(f"{adapter}:{tmp_path / 'nowhere'}")


def test_several_datasets_are_one_behind_the_other(tmp_path: Path) -> None:
    refs = [f"folder:{write_folder(tmp_path / name, Blocks(n))}" for name, n in (("a", 2), ("b", 3))]
    dataset = open_all(refs)
    assert len(dataset) == 5 and dataset.name == "a+b"
    np.testing.assert_array_equal(dataset[4].label, Blocks(3)[2].label)


def test_datasets_of_different_classes_are_refused(tmp_path: Path) -> None:
    refs = [f"folder:{write_folder(tmp_path / name, Blocks(1))}" for name in ("a", "b")]
    (tmp_path / "b" / "classes.txt").write_text("red\ngreen\nazure\ngrey\n")
    with pytest.raises(DataError, match="class 2 is 'azure' there and 'blue' here"):
        open_all(refs)
    (tmp_path / "b" / "classes.txt").write_text("red\ngreen\nblue\ngrey\npink\n")
    with pytest.raises(DataError, match="5 classes there and 4 here"):
        open_all(refs)
