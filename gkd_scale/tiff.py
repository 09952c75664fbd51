"""Recognises TIFFs that Pillow reads wrongly without an error, or not at all.

TIFF leaves everything open: number and width of channels, signs, floats, byte orders, planes. Pillow knows
some of it, and may show noise for the rest.
"""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, TiffImagePlugin

_BITS, _SIGNS, _PLANES, _MAP, _PAGE = 258, 339, 284, 320, 254
_THUMBNAIL_OR_MASK = 5
_INTEGERS, _SIGNED, _FLOATS = 1, 2, 3
_GREYS = ("L", "I", "I;16", "I;16B", "F")
_EIGHT = "store 8 bits a channel"


def misread(image: Image.Image) -> tuple[str, str] | None:
    """Why Pillow's pixels of an opened TIFF are wrong, and what helps; None if they are right.

    It reads the header alone.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.tile:
        return None
    tags: Any = image.tag_v2
    codec, _, _, args = image.tile[0]
    mode = args[0] if isinstance(args, tuple) else str(args)
    bits = max(tags.get(_BITS, (1,)))
    if tags.get(_PAGE, 0) & _THUMBNAIL_OR_MASK:
        return "its first page is a thumbnail or a mask, as in raw files of cameras", "develop it to RGB"
    if _SIGNED in tags.get(_SIGNS, ()) and bits < 32:
        return f"its integers of {bits} bits are signed, and nothing says which value is white", _EIGHT
    if tags.get(_PLANES) == 2 and bits > 8 and len(image.getbands()) > 1 and codec != "libtiff":
        hint = f"{_EIGHT}, or store the channels pixel by pixel (GDAL: -co INTERLEAVE=PIXEL)"
        return f"its channels of {bits} bits lie one behind the other, which Pillow reads as noise", hint
    if codec == "libtiff" and "32B" in str(mode):
        return "it is compressed, and its byte order is that of Motorola, which Pillow reads as noise", _EIGHT
    if image.mode in _GREYS and image.n_frames in (3, 4) and _is_alike(image):
        return f"its {image.n_frames} pages seem to be the channels of one image", "store RGB, pixel by pixel"
    if image.mode == "P" and 0 < max(tags.get(_MAP, (0,))) < 256:
        return "its palette counts to 255, where a TIFF's counts to 65535: all colours would be black", _EIGHT
    return None


def _is_alike(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether the second page has the size and the mode of the first."""
    first = (image.size, image.mode)
    image.seek(1)
    second = (image.size, image.mode)
    image.seek(0)
    return first == second


def unknown(data: bytes) -> str:
    """What a TIFF that Pillow cannot open is, as "3 channels of 32-bit floats"; the empty string if none."""
    try:
        header = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(header.next)
        header.load(file)
        tags: Any = header
        bits = tags.get(_BITS, (1,))
        channels = tags.get(277, len(bits))
        kinds = {_INTEGERS: "unsigned integers", _SIGNED: "signed integers", _FLOATS: "floats"}
        kind = kinds.get(tags.get(_SIGNS, (_INTEGERS,))[0], "numbers of another kind")
        compression = TiffImagePlugin.COMPRESSION_INFO.get(tags.get(259, 1), f"number {tags.get(259)}")
        packing = "" if compression == "raw" else f", compression {compression}"
        return f"{channels} channel{'s' * (channels != 1)} of {bits[0]}-bit {kind}{packing}"
    except Exception:  # no TIFF, or none of which anything is known
        return ""
