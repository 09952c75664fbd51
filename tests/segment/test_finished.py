"""A finished run in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gkd_scale
from gkd_scale.errors import DataError, RunError

from .support import CLASSES, Blocks, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def test_an_image_is_the_same_however_it_is_given(run: Path, tmp_path: Path) -> None:
    segmenter = gkd_scale.load_segmenter(run)
    pixels = Blocks(1, sizes=((40, 50),))[0].image
    Image.fromarray(pixels).save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    result = segmenter.predict(pixels)
    assert isinstance(result, np.ndarray)
    assert result.shape == (40, 50) and len(np.unique(result)) > 1
    assert segmenter.classes == CLASSES
    for other in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(pixels), tensor):
        np.testing.assert_array_equal(segmenter.predict(other), result)
    for several in (pixels[None], tensor[None], [tensor, pixels], (each for each in [pixels])):
        many = segmenter.predict(several)
        assert isinstance(many, list)
        for each in many:
            np.testing.assert_array_equal(each, result)


def test_what_is_no_image_is_refused(run: Path, tmp_path: Path) -> None:
    segmenter = gkd_scale.load_segmenter(run)
    for wrong, message in [
        (np.zeros((4, 4, 3), np.float32), "float32 of"),
        (np.zeros((4, 4), np.uint8), "is no image"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "uint8 of"),
        (7, "a int is no image"),
        (tmp_path / "nowhere.jpg", "cannot be read"),
    ]:
        with pytest.raises(DataError, match=message):
            segmenter.predict(wrong)
    with pytest.raises(RunError, match="does not exist"):
        gkd_scale.load_segmenter(tmp_path / "nowhere")
