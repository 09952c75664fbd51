"""``ADAPTER:PATH``, and several datasets as one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.errors import ConfigError, DataError
from gkd_scale.segment.datasets.registry import ADAPTERS, open_all, open_dataset, parse, subset

from ..support import Blocks, write_folder  # noqa: TID252


def test_parse() -> None:
    assert parse("folder:a/b") == ("folder", Path("a/b"), "")
    assert parse("camvid:C:/x@y") == ("camvid", Path("C:/x@y"), "")
    assert parse("acdc:a@b/c@night/val") == ("acdc", Path("a@b/c"), "night/val")
    assert [str(parse(ref)) for ref in ("gtav:x", "gtav:x@val")] == ["gtav:x", "gtav:x@val"]


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("cityscapes:x", "cityscapes:PATH@train  cityscapes:PATH@val"),
        ("cityscapes:x@vall", "did you mean 'val'"),
        ("acdc:x@night", "did you mean 'night/val'"),
        ("acdc:x@dusk/low", "acdc:PATH@night/val"),
        ("gtav:x@test", "choose one of: gtav:PATH@train  gtav:PATH@val"),
    ],
)
def test_parts_are_named_where_none_fits(ref: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_dataset(ref)
    assert message in error.value.hint


@pytest.mark.parametrize("ref", ["a/b", "folder:", "folder"])
def test_malformed(ref: str) -> None:
    with pytest.raises(ConfigError, match="not ADAPTER:PATH"):
        parse(ref)


def test_unknown_adapter_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'camvid'"):
        parse("camvit:x")


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_every_adapter_says_that_a_folder_is_missing(adapter: str, tmp_path: Path) -> None:
    part = next(iter(ADAPTERS[adapter].parts))
    with pytest.raises(DataError, match="there is no folder"):
        open_dataset(f"{adapter}:{tmp_path / 'nowhere'}{part and '@' + part}")


def test_classes_that_no_dataset_labels(tmp_path: Path) -> None:
    """Of several datasets: those that none of them has; a subset has what the whole has."""
    refs = [f"folder:{write_folder(tmp_path / name, Blocks(2))}" for name in ("a", "b", "c")]
    for name, absent in (("a", "red\nblue\n"), ("b", "blue\ngrey\n")):
        (tmp_path / name / "absent.txt").write_text(absent)
    assert list(open_all(refs[:1]).absent) == ["red", "blue"]
    assert list(open_all(refs[:2], Fraction(1, 2)).absent) == ["blue"]
    assert list(open_all(refs).absent) == []


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


SHARES = st.fractions(Fraction(1, 64), Fraction(1))


@given(st.integers(1, 60), SHARES, SHARES)
def test_a_smaller_fraction_is_part_of_a_larger_one(images: int, one: Fraction, other: Fraction) -> None:
    small, large = (
        {subset(DATASETS[images], share)[i].name for i in range(len(subset(DATASETS[images], share)))}
        for share in sorted((one, other))
    )
    assert small <= large
    assert len(small) == -(-images * min(one, other) // 1)


DATASETS = {images: Blocks(images, [(2, 2)]) for images in range(1, 61)}


def test_a_subset_keeps_what_it_is_of() -> None:
    whole = DATASETS[32]
    part = subset(whole, Fraction(1, 16))
    assert len(part) == 2 and part.classes == whole.classes and part.name == whole.name
    for index in (0, 1):
        np.testing.assert_array_equal(part.label(index), part[index].label)
    assert subset(whole, Fraction(1)) is whole
