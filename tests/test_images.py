"""Image files to upright RGB, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from gkd_scale import images
from gkd_scale.images import UnreadableImage, open_bytes, open_image, upright_size
from tests.cache.bad_input import png
from tests.segment.datasets.miniature import write_png16


def picture(width: int = 90, height: int = 70) -> Image.Image:
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def save(tmp_path: Path, image: Image.Image, name: str, **options: Any) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def pixels_of(path: Path) -> np.ndarray[Any, Any]:
    result = open_image(path)
    assert result.image.mode == "RGB"
    return np.asarray(result.image)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff"])
def test_formats(tmp_path: Path, name: str) -> None:
    pixels = pixels_of(save(tmp_path, picture(), name))
    assert np.abs(pixels.astype(int) - np.asarray(picture()).astype(int)).mean() < 5


def test_modes_become_rgb(tmp_path: Path) -> None:
    rgb = picture()
    grey = np.asarray(rgb.convert("L"))
    for mode in ("1", "L", "P", "CMYK", "YCbCr", "LAB"):
        assert pixels_of(
            save(tmp_path, rgb.convert(mode if mode != "LAB" else "RGB"), f"{mode}.tiff")
        ).shape == (70, 90, 3)
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    for name in ("16.png", "16.tiff"):
        np.testing.assert_array_equal(pixels_of(save(tmp_path, sixteen, name))[..., 0], grey)
    floats = Image.fromarray(grey.astype(np.float32) / 255)
    np.testing.assert_array_equal(pixels_of(save(tmp_path, floats, "f.tiff"))[..., 1], grey)


def test_alpha_lies_over_black(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    clear.paste((200, 100, 50, 255), (0, 0, 4, 8))
    for name, image in [("rgba.png", clear), ("p.png", clear.quantize(4)), ("la.png", clear.convert("LA"))]:
        pixels = pixels_of(save(tmp_path, image, name))
        assert pixels[0, 7].tolist() == [0, 0, 0], name
        assert pixels[0, 0].max() > 90, name
    plain = Image.new("RGB", (4, 4), (1, 2, 3))
    assert pixels_of(save(tmp_path, plain, "trns.png", transparency=(1, 2, 3))).max() == 0


def test_exif_orientation_is_applied_and_recorded(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = open_image(save(tmp_path, picture(90, 70), "turned.jpg", exif=exif, quality=100))
    assert result.image.size == (70, 90)
    assert result.source == {"format": "JPEG", "mode": "RGB", "size": [70, 90], "orientation": 6}


def test_a_broken_exif_block_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path, picture(), "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff rubbish")
    assert pixels_of(path).shape == (70, 90, 3)


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    path = save(tmp_path, frames[0], "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(path).source["frames"] == 3
    assert pixels_of(path)[0, 0].tolist() == [255, 0, 0]


def damaged_files() -> dict[str, bytes]:
    def encode(format: str) -> bytes:
        buffer = io.BytesIO()
        picture().save(buffer, format)
        return buffer.getvalue()

    jpeg, png, webp = encode("JPEG"), encode("PNG"), encode("WEBP")
    flip = bytearray(png)
    flip[len(png) // 2] ^= 255
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        png[:8]
        + struct.pack(">I", 13)
        + b"IHDR"
        + huge
        + struct.pack(">I", zlib.crc32(b"IHDR" + huge))
        + png[33:]
    )
    return {
        "empty.jpg": b"",
        "text.png": b"no image at all",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "header_only.jpg": jpeg[:20],
        "truncated.png": png[: len(png) // 2],
        "truncated.webp": webp[: len(webp) // 2],
        "truncated.bmp": encode("BMP")[:200],
        "truncated.tif": encode("TIFF")[:300],
        "flipped.png": bytes(flip),
        "bomb.png": bomb,
        "zeros.png": bytes(1000),
    }


@pytest.mark.parametrize("name", list(damaged_files()))
def test_damaged_files_have_a_reason_and_no_warning(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged_files()[name])
    with warnings.catch_warnings(record=True) as records, pytest.raises(UnreadableImage) as reason:
        warnings.simplefilter("always")
        open_image(path)
    assert str(reason.value).strip() and "\n" not in str(reason.value)
    assert records == []


def test_what_is_no_file_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in [
        ("folder.jpg", "not a regular file"),
        ("link.jpg", "No such file"),
        ("pipe.jpg", "not a regular file"),
    ]:
        with pytest.raises(UnreadableImage, match=reason):
            open_image(tmp_path / name)


def test_the_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, picture(), "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="90x70 pixels are above the limit of 1000"):
        open_image(path)


# --------------------------------------------------------------------------- more than 8 bits


def ramp(low: float, high: float, dtype: str, size: int = 64) -> npt.NDArray[Any]:
    """(8, 8) values from ``low`` to ``high``."""
    return np.linspace(low, high, size).round(3).astype(dtype).reshape(8, 8)


def tiff(values: npt.NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ramp(0, 1, "uint16"), "below 256, as 8-bit"),
        (ramp(0, 255, "uint16"), "below 256, as 8-bit"),
        (ramp(90, 1023, "uint16"), "below 1024, as 10-bit"),
        (ramp(0, 4095, "uint16"), "below 4096, as 12-bit"),
        (ramp(0, 10000, "uint16"), "below 16384, as 14-bit values are, and would turn dark"),
        (ramp(0, 255, "int32"), "below 256"),
        (ramp(-1000, 3000, "int32"), "from -1000 to 3000"),
        (ramp(0, 70000, "int32"), "from 0 to 70000"),
        (ramp(-1, 1, "float32"), "from -1 to 1"),
        (ramp(-2.1, 2.6, "float32"), "from -2.1 to 2.6"),
        (ramp(0, 30, "float32"), "from 0 to 30"),
        (ramp(0, 65535, "float32"), "from 0 to 6.554e+04"),
        (np.full((8, 8), np.nan, "float32"), "nan"),
        (np.array([[0, 0.5], [1, np.inf]], "float32"), "from 0 to inf"),
    ],
)
def test_ranges_that_cannot_be_what_is_assumed_are_named(values: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(UnreadableImage) as error:
        open_bytes(tiff(values))
    assert message in str(error.value) and "store 8 bits" in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        ramp(0, 65535, "uint16"),
        ramp(40, 20000, "uint16"),
        np.zeros((8, 8), "uint16"),
        ramp(0, 65535, "int32"),
        ramp(0, 1, "float32"),
        ramp(-0.02, 1.03, "float32"),
        ramp(0, 255, "float32"),
        ramp(-3, 260, "float32"),
        np.zeros((8, 8), "float32"),
    ],
)
def test_ranges_that_are_used(values: npt.NDArray[Any]) -> None:
    top = 65535 if values.dtype.kind in "ui" else (255 if values.max() > 2 else 1)
    grey = np.asarray(open_bytes(tiff(values)).image)[..., 0]
    np.testing.assert_array_equal(grey, np.round(np.clip(values / top, 0, 1) * 255))


def test_unknown_values_of_a_float_map_are_black() -> None:
    assert open_bytes(tiff(np.array([[np.nan, 1.0]], "float32"))).image.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_white_may_be_zero(compression: str | None) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    data = tiff(ramp(0, 65535, "uint16"), tiffinfo=info, compression=compression)
    grey = np.asarray(open_bytes(data).image)[..., 0]
    assert grey[0, 0] == 255 and grey[-1, -1] == 0


@given(st.integers(0, 65535), st.sampled_from([3, 4]))
@example(2313, 3)  # 9 of 8 bits, scaled
def test_sixteen_bits_of_several_channels(high: int, channels: int) -> None:
    samples = np.zeros((2, 2, channels), np.uint16)
    samples[..., 3:] = 65535
    samples[0, 0, 1] = high
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *_, **__: None)
        contents: list[bytes] = []
        patch.setattr(Path, "write_bytes", lambda _, data: contents.append(data))
        write_png16(Path("x.png"), samples)
    if high < 1 << 14 and high % 257:
        with pytest.raises(UnreadableImage, match="bit values are"):
            open_bytes(contents[0])
    else:
        assert open_bytes(contents[0]).image.getpixel((0, 0)) == (0, high >> 8, 0)


def test_a_transparent_grey_of_16_bits_is_black(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[1000, 65535]], np.uint16)).save(path, transparency=1000)
    assert pixels_of(path)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


# -------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_the_size_in_the_header_is_that_of_the_upright_image(
    tmp_path: Path, name: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, picture(), name, exif=exif.tobytes())
    height, width, _ = pixels_of(path).shape
    assert upright_size(path) == (height, width)
    assert (height > width) == (orientation >= 5)
    assert images.exif_orientation(path) == orientation


def test_the_header_of_a_deep_image_is_not_believed(tmp_path: Path) -> None:
    path = save(tmp_path, Image.fromarray(ramp(0, 4095, "uint16")), "a.png")
    with pytest.raises(UnreadableImage, match="12-bit"):
        upright_size(path)
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="not an image"):
        upright_size(tmp_path / "b.png")


@pytest.mark.parametrize(("grey", "message"), [(40_000, None), (4000, "12-bit"), (40, "8-bit")])
def test_sixteen_bits_of_grey_with_alpha(grey: int, message: str | None) -> None:
    data = png(2, 1, 16, 4, b"\0" + struct.pack(">4H", grey, 65535, grey // 2, 0))
    if message is None:
        row = np.asarray(open_bytes(data).image)[0, :, 0]
        assert row.tolist() == [grey >> 8, 0]
        return
    with pytest.raises(UnreadableImage, match=message):
        open_bytes(data)
