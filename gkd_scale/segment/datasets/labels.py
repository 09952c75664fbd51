"""The meaning of label files: class names and colours, and how stored values become train ids.

Stored values are those of a dataset's authors: ids of one 8- or 16-bit channel, indices of a palette,
colours, or one channel of many. :func:`read_stored` reads them as they are,
:class:`Encoding` turns them into train ids. A value that the encoding does not list is an error that
names the file and the value; values that are documented as void are listed as ``IGNORE``.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from gkd_scale import images
from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.values import MANY, unknown_values
from gkd_scale.types import IGNORE, Size, UInt8Array

Colour = tuple[int, int, int]
Raw = npt.NDArray[Any]
"""(H, W) or (H, W, channels) integers."""

MOST_CLASSES = 254
_LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")
_PALETTE = 3
"""PNG's colour type of palettes."""
_UNKNOWN = 254
_MODES = {2: "LA", 3: "RGB", 4: "RGBA"}


class LabelSet(NamedTuple):
    """Names and colours of the classes; the index is the train id."""

    classes: Sequence[str]
    palette: Sequence[Colour]


def default_palette(count: int) -> list[Colour]:
    """``count`` distinct colours: hues a golden ratio apart, three brightnesses."""
    colours = []
    for index in range(count):
        rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, (0.95, 0.75, 0.55)[index % 3])
        colours.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return colours


@dataclass(frozen=True)
class Encoding:
    """Stored values to train ids; 255 is always ignored.

    ``ids`` is for files of one channel, ``colours`` for RGB files. If ``channel`` is given, files of many
    channels hold the id in that one. ``text`` says it in a few words. ``inferred``: no class list names the
    ids, they are the values that occur.
    """

    ids: Mapping[int, int]
    colours: Mapping[Colour, int] = field(default_factory=dict)
    channel: int | None = None
    text: str = "class ids"
    inferred: bool = False

    def decode(self, raw: Raw, path: Path) -> UInt8Array:
        """(H, W) uint8 train ids; DataError for a value that is not listed. ``path`` is for the message."""
        if raw.ndim == 3 and self.channel is not None:
            raw = raw[..., self.channel]
        if raw.ndim == 3 and self.colours and raw.shape[2] >= 3:
            return self._decode_colours(raw[..., :3], path)
        if refusal := self.refusal(raw, path):
            raise refusal
        return self._decode_ids(raw, path)

    def refusal(self, raw: Raw, path: Path) -> DataError | None:
        """The error if values cannot be those of one channel of ids; None if they can."""
        if raw.ndim != 2:
            return _no_ids(raw, path)
        if raw.dtype.kind == "f":
            return DataError(f"{path} holds floats", "store class ids as 8-bit integers")
        if raw.dtype not in (np.bool_, np.uint8) and (raw.min() < 0 or raw.max() > 255):
            return _too_wide(raw, path)
        return None

    @cached_property
    def _table(self) -> UInt8Array:
        table = np.full(256, _UNKNOWN, np.uint8)
        table[IGNORE] = IGNORE
        for value, train in self.ids.items():
            table[value] = train
        return table

    @cached_property
    def _codes(self) -> tuple[npt.NDArray[np.uint32], UInt8Array]:
        """Colours as sorted 24-bit numbers, and their train ids."""
        pairs = sorted((r << 16 | g << 8 | b, train) for (r, g, b), train in self.colours.items())
        keys, trains = zip(*pairs, strict=True)
        return np.array(keys, np.uint32), np.array(trains, np.uint8)

    def _decode_ids(self, raw: Raw, path: Path) -> UInt8Array:
        label: UInt8Array = self._table[raw.astype(np.uint8, copy=False)]
        unknown = label == _UNKNOWN
        if unknown.any():
            raise self._unknown(raw, int(raw[unknown][0]), path)
        return label

    def _unknown(self, raw: Raw, value: int, path: Path) -> DataError:
        """The error for ``value`` of a label (H, W) without a meaning, and a cause from its other values."""
        pixels = np.bincount(raw.astype(np.uint8).ravel(), minlength=256)
        classes = len({train for train in self.ids.values() if train != IGNORE})
        cause, hint = unknown_values(pixels, classes, self.text) or (
            "",
            "correct the label, or the class list (classes.txt) if the class is missing there",
        )
        return DataError(
            f"{path}: label value {value} is not among the values of its {classes} classes and of void "
            f"({ranges([*self.ids, IGNORE])})" + (f"; {cause}" if cause else ""),
            hint,
        )

    def _decode_colours(self, raw: Raw, path: Path) -> UInt8Array:
        keys, trains = self._codes
        wide = raw.astype(np.uint32)
        codes = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
        unknown = keys[place] != codes
        if unknown.any():
            colour = tuple(int(value) for value in raw[unknown][0])
            raise DataError(
                f"{path}: the colour {colour} is not among the {len(keys)} of this dataset",
                "restore the label from the original archive",
            )
        return trains[place]


def _no_ids(raw: Raw, path: Path) -> DataError:
    """The error for a file of several channels, which is no label of class ids."""
    mode = _MODES.get(raw.shape[2], raw.shape[2])
    hint = "store class ids as an 8-bit greyscale or palette PNG, not colours"
    colours = raw[..., : 1 if raw.shape[2] < 3 else 3]
    if (colours == colours[..., :1]).all():
        hint = "its colours are greys: store one of its channels alone, if that holds class ids"
        if raw.shape[2] in (2, 4) and np.ptp(colours) == 0 < np.ptp(raw[..., -1]):
            hint = "only its alpha differs from pixel to pixel: store that alone, if it holds class ids"
    elif len(np.unique(colours[::4, ::4].reshape(-1, colours.shape[2]), axis=0)) > 256:
        hint = "it looks like a photograph: check that images/ and labels/ are not swapped"
    return DataError(f"{path} has mode {mode}: a label has one channel of class ids", hint)


def _too_wide(raw: Raw, path: Path) -> DataError:
    """The error for values outside of 0 to 255, which are no class ids."""
    value = int(raw.max() if raw.max() > 255 else raw.min())
    hint = "store class ids, 255 for ignored"
    others = raw[raw != value]
    if value == 65535 and (not others.size or others.max() < 256):
        hint = "65535 is void in 16 bits: store 8 bits, with 255 for it"
    elif value >= 1000 and value // 1000 < 256 and not ((raw >= 256) & (raw < 1000)).any():
        hint = "ids of instances (class id x 1000 + number)? give the files of class ids"
    elif raw.min() >= 0 and _inside_classes(raw):
        hint = "ids of instances (class id x 256 + number)? give the files of class ids"
    elif not (raw % 257).any():
        hint = "all values are multiples of 257: 8-bit ids stored in 16 bits; divide by 257"
    elif len(np.unique(raw)) > MANY:
        hint = "store class ids; so many values are those of instances, of depths or of a photograph"
    return DataError(f"{path}: label value {value} is not in 0 to 255", hint)


def _inside_classes(raw: Raw) -> bool:
    """Whether values look like class id x 256 + number: of few classes, numbered from the smallest up."""
    values = np.unique(raw)
    classes, numbers = np.unique(values // 256), values % 256
    return len(classes) < len(values) < MANY and bool(numbers.max() < len(values))


def ranges(values: Iterable[int]) -> str:
    """``[0, 1, 2, 5]`` as ``"0 to 2, 5"``."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)


def identity(classes: int, void: Sequence[int] = (), text: str = "class ids") -> Encoding:
    """The encoding of files that hold train ids 0 to ``classes`` - 1 already; ``void`` is ignored."""
    return Encoding({**{value: value for value in range(classes)}, **dict.fromkeys(void, IGNORE)}, text=text)


# ---------------------------------------------------------------------------------------- reading


def read_image(path: Path) -> UInt8Array:
    """(H, W, 3) uint8 RGB, upright; DataError if the file cannot be used."""
    try:
        return np.asarray(images.open_image(path).image)
    except images.UnreadableImage as error:
        raise _unreadable(path, error.reason, error.hint) from None


def image_size(path: Path) -> Size:
    """Height and width of :func:`read_image`, mostly from the header alone; the same DataError."""
    try:
        return images.upright_size(path)
    except images.UnreadableImage as error:
        raise _unreadable(path, error.reason, error.hint) from None


def read_stored(path: Path) -> Raw:
    """A label file's values as they are, (H, W) or (H, W, channels), upright; indices of a palette PNG.

    PNGs of several 16-bit channels keep all 16 bits, greys of 2 or 4 bits are as they were stored. DataError
    if the file cannot be decoded, or is compressed with loss.
    """
    try:
        with Image.open(path) as image:
            _refuse_lossy(image, path)
            images.refuse_misread(image)
            scale = images.low_bits_scale(image)
            sixteen = _low_bytes_mode(image)
            raw = _upright(image)
        if scale is not None:
            return raw // scale
        if sixteen is None:
            return raw
        with Image.open(path) as image:
            image.tile = [image.tile[0]._replace(args=sixteen)]
            return raw.astype(np.uint16) << 8 | _upright(image)
    except DataError:
        raise
    except images.UnreadableImage as error:
        raise _unreadable(path, error.reason, "store class ids as 8-bit PNG") from None
    except UnidentifiedImageError:
        reason = "no image" if path.stat().st_size else "the file is empty"
        raise _unreadable(path, reason) from None
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise _unreadable(path, error) from None


def _upright(image: Image.Image) -> Raw:
    """The values, turned as EXIF says, like images."""
    image.load()
    return np.asarray(images.turn(image, images.orientation_of(image)))


def read_palette(path: Path) -> bytes | None:
    """The palette of a PNG (red, green, blue of each index), from its header; None for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
            if not head.startswith(b"\x89PNG") or head[-1] != _PALETTE:
                return None
            file.seek(0)
            with Image.open(file, formats=("PNG",)) as image:
                return bytes(image.palette.palette) if image.palette is not None else None
    except Exception:  # read_stored raises the error
        return None


def _refuse_lossy(image: Image.Image, path: Path) -> None:
    """DataError for a format that changes the values it stores."""
    lossy = image.format in _LOSSY or "jpeg" in str(image.info.get("compression", ""))
    if lossy:
        raise DataError(
            f"{path} is a {image.format} file{' called .png' if path.suffix.lower() == '.png' else ''}: "
            "lossy compression changes class ids",
            "write the labels as PNG again from the original: to convert this file would keep its faults",
        )


def _low_bytes_mode(image: Image.Image) -> str | None:
    """Pillow's raw mode for the low bytes of several 16-bit channels; None for any other file.

    Pillow decodes such PNGs to the high byte of each big-endian sample, and has no mode of 16 bits to
    put them in. Read as little-endian, the "high" byte is the low one.
    """
    tiles = getattr(image, "tile", [])
    mode = tiles[0].args if len(tiles) == 1 else None
    return mode.replace("16B", "16L") if mode in ("RGB;16B", "RGBA;16B") else None


def require_same_size(image: tuple[int, ...], label: tuple[int, ...], paths: tuple[Path, Path]) -> None:
    """DataError unless an image and its label have one size (H, W)."""
    if image == label:
        return
    turn = images.exif_orientation(paths[0])
    upright = f" upright (EXIF orientation {turn})" if turn > 1 else ""
    raise DataError(
        f"{paths[1]} is {label[0]}x{label[1]} (HxW) but its image {paths[0]} is "
        f"{image[0]}x{image[1]}{upright}",
        "labels must have the size of their images"
        + (", which are read as their EXIF turns them: turn the label too" if upright else ""),
    )


def _unreadable(path: Path, reason: object, hint: str = "") -> DataError:
    what = "used" if hint else "read"
    return DataError(
        f"{path} cannot be {what}: {reason}", hint or "restore the file, or remove it and its partner"
    )
