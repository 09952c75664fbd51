"""Labelled datasets through a cache: labels go through the crop and flip of their views, and come back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_scale.cache.build import build
from gkd_scale.cache.config import RepairConfig, ViewConfig
from gkd_scale.cache.plan import make_plan
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.repair import repair
from gkd_scale.cache.source import LabelledSource
from gkd_scale.cache.spec import read_spec
from gkd_scale.cache.verify import verify
from gkd_scale.cache.views import make_view, view_label
from gkd_scale.errors import DataError
from gkd_scale.types import IGNORE, SegSample

from .support import SIZE, TinyTeacher, config, image_of, tree

PALETTE = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


class Stripes:
    """Three classes in vertical stripes, each in its own colour, one pixel in the corner ignored."""

    name, classes, palette, absent = "stripes", ("red", "green", "blue"), PALETTE, ()

    def __init__(self, count: int = 7, bad: int | None = None) -> None:
        self._count, self._bad = count, bad

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> SegSample:
        if index == self._bad:
            raise DataError(f"{index}.png cannot be read")
        label = (np.arange(90 + index) // 23 % 3).astype(np.uint8) * np.ones((70, 1), np.uint8)
        image = np.array(PALETTE, np.uint8)[label]
        label[0, 0] = IGNORE
        return SegSample(f"s{index}", image, label)


def agreement(jpeg: bytes, label: np.ndarray) -> float:
    """Share of the labelled pixels whose colour is nearest to that of their class."""
    distance = np.abs(image_of(jpeg)[..., None, :].astype(int) - np.array(PALETTE)).sum(-1)
    valid = label != IGNORE
    return float((distance.argmin(-1) == label)[valid].mean())


@pytest.mark.parametrize("randaugment", [0, 3])
def test_labels_follow_the_pixels_of_their_view(randaugment: int) -> None:
    sample = Stripes()[3]
    cfg = ViewConfig(color=0, randaugment=randaugment)
    flips = set()
    for view in range(30):
        result = make_view(Image.fromarray(sample.image), f"{view:016x}", view, SIZE, cfg, 0)
        names = {name for name, _ in result.params["randaugment"]}
        if names & {"invert", "solarize", "solarize_add", "posterize", "color", "equalize", "autocontrast"}:
            continue  # the colours no longer tell the classes
        png = view_label(sample.label, result.params, SIZE)
        with Image.open(io.BytesIO(png)) as image:
            label = np.array(image)
        assert label.shape == SIZE and set(np.unique(label)) <= {0, 1, 2, IGNORE}
        assert agreement(result.jpeg, label) > 0.9, result.params
        flips.add(result.params["flip"])
    assert flips == {True, False}


def test_a_labelled_cache_is_whole_resumable_and_reads_back(tmp_path: Path) -> None:
    source = LabelledSource(Stripes(bad=2))
    cfg = config(Path("stripes:here"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"2\.png cannot be read"):
        make_plan("stripes:here", 4, source=source)
    source = LabelledSource(Stripes())
    with pytest.raises(RuntimeError, match="the teacher broke"):
        build(cfg, TinyTeacher(fail_at=2), source=source, quiet=True)
    build(cfg, TinyTeacher(), source=source, quiet=True)
    assert verify(cfg.out, print, quiet=True) == 0
    cache = Cache.open(cfg.out)
    assert cache.spec.labels == {"classes": ["red", "green", "blue"], "palette": [list(c) for c in PALETTE]}
    for view in range(2):
        for index in range(7):
            members = cache.read_members(view, index, ("jpg", "label.png"))
            assert list(members) == ["jpg", "label.png"]
            with Image.open(io.BytesIO(members["label.png"])) as image:
                assert agreement(bytes(members["jpg"]), np.array(image)) > 0.9
    before = tree(cfg.out)
    (cfg.out / "v01/shard-000001.tar").write_bytes(b"")
    recipe = RepairConfig(cfg.out, "stripes:here", batch_size=3)
    repair(recipe, read_spec(cfg.out), TinyTeacher(), lambda _: None, source=source, quiet=True)
    assert tree(cfg.out) == before


def test_names_come_from_files_where_the_dataset_tells_them(tmp_path: Path) -> None:
    class Files(Stripes):
        pairs = ((tmp_path / "b.png", tmp_path / "l.png"), (tmp_path / "a.png", tmp_path / "l.png"))

        def __getitem__(self, index: int) -> SegSample:
            raise AssertionError("nothing is read")

    (tmp_path / "a.png").write_bytes(b"12345")
    (tmp_path / "b.png").write_bytes(b"123")
    assert LabelledSource(Files(2)).entries() == [("000000-b", 3), ("000001-a", 5)]
