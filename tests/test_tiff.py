"""TIFFs that Pillow reads wrongly, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gkd_scale import tiff
from gkd_scale.images import UnreadableImage, open_image, upright_size
from tests.segment.datasets.miniature import write_tiff

RGB = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
WIDE = RGB.astype(np.uint16) * 257


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(
    ("samples", "channels"), [(RGB, RGB), (WIDE, RGB), (WIDE[..., 0], RGB[..., [0, 0, 0]])]
)
def test_all_that_is_read_is_read_right(
    tmp_path: Path, order: str, compress: bool, planes: bool, samples: Any, channels: Any
) -> None:
    if planes and samples.ndim == 2:
        return
    path = write_tiff(tmp_path / "x.tif", samples, order=order, compress=compress, planes=planes)
    if planes and not compress and samples.dtype == np.uint16:
        for reader in (open_image, upright_size):
            with pytest.raises(UnreadableImage, match="one behind the other"):
                reader(path)
    else:
        np.testing.assert_array_equal(np.asarray(open_image(path).image), channels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "f4"])
def test_other_numbers_are_right_or_refused(tmp_path: Path, order: str, compress: bool, kind: str) -> None:
    grey = np.linspace(0, 120, 126, dtype=np.uint8).reshape(9, 14)
    scale = {"i1": 1, "i2": 257, "i4": 257, "f4": 1}[kind]
    path = write_tiff(
        tmp_path / "x.tif", grey.astype(kind) * np.array(scale, kind), order=order, compress=compress
    )
    try:
        pixels = np.asarray(open_image(path).image)
    except UnreadableImage as error:
        assert kind in ("i1", "i2") or (compress and order == ">"), error
    else:
        np.testing.assert_array_equal(pixels[..., 0], grey)


def test_two_pages_or_pages_of_other_sizes_are_no_channels(tmp_path: Path) -> None:
    grey = Image.fromarray(RGB[..., 0])
    for others in ([grey], [grey.resize((5, 5))] * 2):
        grey.save(tmp_path / "x.tif", save_all=True, append_images=others)
        assert open_image(tmp_path / "x.tif").source["frames"] == 1 + len(others)
    grey.save(tmp_path / "x.tif", save_all=True, append_images=[grey] * 2)
    with pytest.raises(UnreadableImage, match="its 3 pages"):
        open_image(tmp_path / "x.tif")


def test_a_thumbnail_is_not_the_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="a thumbnail"):
        open_image(write_tiff(tmp_path / "x.tif", RGB, tags={254: [1]}))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), "3 channels of 32-bit floats"),
        (np.zeros((4, 5), np.float16), "1 channel of 16-bit floats"),
        (np.zeros((4, 5, 6), np.uint16), "6 channels of 16-bit unsigned integers"),
    ],
)
def test_what_an_unknown_tiff_is(tmp_path: Path, samples: Any, message: str) -> None:
    path = write_tiff(tmp_path / "x.tif", samples)
    assert tiff.unknown(path.read_bytes()) == message
    with pytest.raises(UnreadableImage, match=f"a TIFF of {message}, which Pillow cannot read"):
        open_image(path)
    assert tiff.unknown(b"no TIFF at all") == tiff.unknown(b"II*\0") == ""
