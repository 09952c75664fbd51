"""Image files to upright 8-bit RGB: the one reader of the project, for labelled and unlabelled images alike.

The reader applies the EXIF orientation, puts alpha over black, takes the first frame, and converts palettes
and CMYK as Pillow does. White is 65535 for greys of 16 bits, and 1 for floats, or 255 if they go that far.

Files that hold more than 8 bits do not say what white is. Values that cannot mean what is assumed (a sensor's
12 bits in 16, counts of 32 bits, floats that were normalised or count to 65535) would turn black, white or
grey without a word: they are refused, with the range that was found.
"""

from __future__ import annotations

import io
import re
import stat
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gkd_scale import tiff
from gkd_scale.errors import one_line
from gkd_scale.types import Size, UInt8Array

MAX_PIXELS = 178_956_970
"""Larger images are taken for decompression bombs (512 MiB as RGB; Pillow's own hard limit)."""

_BY_PILLOW = re.compile(r"PIL\.")
_ORIENTATION = 0x0112
_PHOTOMETRIC, _WHITE_IS_ZERO = 0x0106, 0
_WHITE = 65535
_LOW_BITS = {"L;2": 85, "L;4": 17}
_BITS = (8, 10, 12, 14)
"""Widths that sensors and wrong conversions leave in 16-bit files."""
_OVERSHOOT = 0.05
"""How far resampled floats may reach beyond the range, as a share of it."""


class UnreadableImage(Exception):
    """One image cannot be used; the text says why, on one line, and what would help if that is known."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(f"{reason}; {hint}" if hint else reason)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True)
class Picture:
    """An upright RGB image and what it was on disk."""

    image: Image.Image
    source: dict[str, Any]
    label: UInt8Array | None = None
    """Train ids (H, W) of the upright image, if the source has labels."""


def open_image(path: Path) -> Picture:
    """Any image file to upright RGB; raises :class:`UnreadableImage` with the reason."""
    return open_bytes(_read(path))


def open_bytes(data: bytes) -> Picture:
    """The content of an image file to upright RGB; raises :class:`UnreadableImage` with the reason."""
    _hush_pillow()
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{image.width}x{image.height} pixels are above the limit of {MAX_PIXELS}"
                )
            source: dict[str, Any] = {"format": image.format, "mode": image.mode, "size": [*image.size[::-1]]}
            refuse_misread(image)
            frames = getattr(image, "n_frames", 1)  # before the pixels: counting seeks
            sixteen = _raw_sixteen(image)
            _scale_clear_colour(image)
            image.load()
            orientation = orientation_of(image)
            upright = turn(image, orientation)
            if orientation != 1:
                source["orientation"] = orientation
            if frames > 1:
                source["frames"] = frames
            if sixteen is not None:
                _require_bright_channels(image, sixteen, data)
            return Picture(to_rgb(upright), source)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise _unknown_format(data) from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more pixels than the limit of {MAX_PIXELS}") from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UnreadableImage(one_line(error)) from None


def refuse_misread(image: Image.Image) -> None:
    """Raise :class:`UnreadableImage` for an opened file whose pixels Pillow gets wrong without an error."""
    if (problem := tiff.misread(image)) is not None:
        raise UnreadableImage(*problem)


def _unknown_format(data: bytes) -> UnreadableImage:
    if kind := tiff.unknown(data):
        return UnreadableImage(f"a TIFF of {kind}, which Pillow cannot read", "store 8 bits, grey or RGB")
    return UnreadableImage("not an image, or a format that Pillow does not know")


def upright_size(path: Path) -> Size:
    """Height and width that :func:`open_image` gives; raises :class:`UnreadableImage`.

    It reads the header alone, except for files of more than 8 bits, whose values decide.
    """
    _hush_pillow()
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith(("I", "F")) or _raw_sixteen(image) is not None
            deep = deep or tiff.misread(image) is not None
            size, swapped = (image.height, image.width), _header_orientation(image) >= 5
            if not deep and image.width * image.height <= MAX_PIXELS:
                # Of TIFFs, Pillow gives the upright size itself.
                return size[::-1] if swapped and image.format != "TIFF" else size
    except Exception:  # the reader knows the reason
        pass
    rgb = open_image(path).image
    return rgb.height, rgb.width


def exif_orientation(path: Path) -> int:
    """EXIF orientation 1 to 8 of a file; 1 if it has none or cannot be read."""
    try:
        with Image.open(path) as image:
            return _header_orientation(image)
    except Exception:
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: alpha over black, 16 bits to 8, palettes and CMYK as Pillow converts them.

    Raises :class:`UnreadableImage` if integers or floats cannot mean what is assumed of them.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bits(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        straight = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), straight).convert("RGB")
    return image.convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of a loaded image; 1 if there is none or the EXIF block is broken."""
    return _orientation(image.getexif)


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """The image upright."""
    if orientation == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not make pixels unreadable
        return image


# --------------------------------------------------------------------------- more than 8 bits


def _to_8_bits(image: Image.Image) -> UInt8Array:
    """Grey values (H, W) of integers or floats; :class:`UnreadableImage` if their range is implausible."""
    values = np.asarray(image, dtype=np.float64)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        values = np.where(values == clear, 0, values)
    top = _top_of_integers(values) if image.mode.startswith("I") else _top_of_floats(values)
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow minds it in 8 bits only
        values = top - values
    return np.round(np.clip(np.nan_to_num(values) / top, 0, 1) * 255).astype(np.uint8)


def _top_of_integers(values: npt.NDArray[np.float64]) -> float:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _WHITE:
        raise UnreadableImage(
            f"its integers reach from {low} to {high}, where 0 is black and {_WHITE} is white",
            "scale them to that, or store 8 bits",
        )
    _require_bright(values)
    return _WHITE


def _top_of_floats(values: npt.NDArray[np.float64]) -> float:
    """The value of white, 1 or 255. NaN counts as black: maps mark missing data so."""
    numbers = values[~np.isnan(values)]
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (np.nan, np.nan)
    for top, minimum in ((1.0, 0.0), (255.0, 64.0)):
        if -_OVERSHOOT * top <= low and minimum <= high <= (1 + _OVERSHOOT) * top:
            return top
    raise UnreadableImage(
        f"its floats reach from {low:.4g} to {high:.4g}, which is neither 0 to 1 nor 0 to 255",
        "scale them to one of these, or store 8 bits",
    )


def _require_bright(values: npt.NDArray[Any]) -> None:
    """Refuse 16-bit values that were never 16 bits: all are small except white, which marks missing data.

    Multiples of 257 are 8 bits that were scaled, however dark.
    """
    darker = values[values < _WHITE]
    high = int(darker.max(initial=0))
    bits = next((bits for bits in _BITS if high < 1 << bits), None)
    if high and bits and (values % 257).any():
        white = f", but for {_WHITE}" if darker.size < values.size else ""
        raise UnreadableImage(
            f"its 16-bit values are all below {1 << bits}{white}, as {bits}-bit values are, and would turn "
            f"{'dark' if bits == 14 else 'nearly black'}",
            f"scale them to {_WHITE}, or store 8 bits",
        )


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of how the file stores pixels, such as "RGB;16B"; the empty string if it has none."""
    tiles = getattr(image, "tile", [])
    raw = tiles[0][3] if tiles else None
    raw = raw[0] if isinstance(raw, tuple) and raw else raw
    return raw if isinstance(raw, str) else ""


def low_bits_scale(image: Image.Image) -> int | None:
    """What Pillow multiplies greys of 2 or 4 bits with, so that they reach 255; None for any other file."""
    return _LOW_BITS.get(_raw_mode(image)) if image.mode == "L" else None


def _scale_clear_colour(image: Image.Image) -> None:
    """Bring the colour that is transparent to the 8 bits that Pillow brings the pixels to."""
    clear = image.info.get("transparency")
    if isinstance(clear, int) and (scale := low_bits_scale(image)) is not None:
        image.info["transparency"] = clear * scale
    elif isinstance(clear, tuple) and _raw_sixteen(image) is not None:
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _raw_sixteen(image: Image.Image) -> str | None:
    """Pillow's raw mode of several 16-bit channels, such as "RGB;16B"; None for any other file.

    Pillow has no mode of several 16-bit channels: it decodes such files to the high bytes.
    """
    raw = _raw_mode(image)
    return raw if ";16" in raw and not raw.startswith(("I", "F")) else None


def _require_bright_channels(image: Image.Image, raw: str, data: bytes) -> None:
    """As :func:`_require_bright` for several channels, whose high bytes are ``image``; not for inks."""
    if image.mode == "CMYK":
        return
    high = np.atleast_3d(np.asarray(image))
    high = high[..., : 1 if high.shape[2] < 3 else 3]
    if high[high < 255].max(initial=0) < 1 << (_BITS[-1] - 8):
        low = _low_bytes(data, raw)
        _require_bright(high.astype(np.uint16) << 8 | (255 if low is None else low))


def _low_bytes(data: bytes, raw: str) -> UInt8Array | None:
    """The low bytes of 16-bit RGB: with the other byte order, Pillow takes them for the high ones."""
    code = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}.get(raw[-1])
    if code is None or not raw.startswith("RGB"):
        return None  # not to be known: Pillow reads these in one byte order only
    with Image.open(io.BytesIO(data)) as image:
        args = image.tile[0].args
        mode = raw[:-1] + code
        args = (mode, *args[1:]) if isinstance(args, tuple) else mode
        image.tile = [image.tile[0]._replace(args=args)]
        return np.asarray(image)[..., :3]


# ---------------------------------------------------------------------------------------- files


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnreadableImage("not a regular file")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImage(error.strerror or one_line(error)) from None
    if not data:
        raise UnreadableImage("the file is empty")
    return data


def _header_orientation(image: Image.Image) -> int:
    """The orientation without the pixels, which a PNG's own ``getexif`` would decode."""
    return _orientation(partial(Image.Image.getexif, image))


def _orientation(exif: Callable[[], Image.Exif]) -> int:
    try:
        orientation = exif().get(_ORIENTATION)
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _hush_pillow() -> None:
    """Keep Pillow's warnings about users' files off the terminal, also in threads."""
    if not any(action == "ignore" and module == _BY_PILLOW for action, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_BY_PILLOW.pattern)
