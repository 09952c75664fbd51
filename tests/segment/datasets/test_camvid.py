"""The CamVid adapter, on a miniature of its layout and on real frames where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.registry import open_dataset
from gkd_scale.types import IGNORE

REAL = Path(__file__).parents[3] / "../shared/camvid"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "images" / "0001TP_1.jpg")
    write_label(tmp_path, np.arange(96, dtype=np.uint8).reshape(8, 12) % 12)
    return tmp_path


def write_label(root: Path, label: np.ndarray) -> None:
    Image.fromarray(label).save(root / "labels" / "0001TP_1.png")


def test_void_is_ignored_and_classes_keep_their_ids(root: Path) -> None:
    dataset = open_dataset(f"camvid:{root}")
    ids = np.arange(96).reshape(8, 12) % 12
    np.testing.assert_array_equal(dataset[0].label, np.where(ids == 11, IGNORE, ids))
    assert len(dataset.classes) == len(dataset.palette) == len(set(dataset.palette)) == 11
    assert dataset.classes[0] == "sky" and dataset.classes[10] == "bicyclist"


def test_value_beyond_void_is_refused(root: Path) -> None:
    write_label(root, np.full((8, 12), 12, np.uint8))
    with pytest.raises(DataError, match=r"0001TP_1\.png: label value 12"):
        open_dataset(f"camvid:{root}")[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="real CamVid frames are not here")
@pytest.mark.parametrize(("domain", "frames"), [("source_day", 305), ("val_day", 101)])
def test_real_frames(domain: str, frames: int) -> None:
    dataset = open_dataset(f"camvid:{REAL / domain}")
    assert len(dataset) == frames
    sample = dataset[frames // 2]
    assert sample.image.shape == (360, 480, 3) and sample.label.shape == (360, 480)
    assert set(np.unique(sample.label)) <= {*range(11), IGNORE}
    assert (sample.label == 3).mean() > 0.05  # a driving video shows road
