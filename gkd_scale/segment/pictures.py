"""Class maps as pictures: palette PNGs, overlays on their images, and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from gkd_scale.types import UInt8Array

Palette = Sequence[tuple[int, int, int]]

_THUMB = (320, 240)
_GAP = 6


def palette_image(mask: UInt8Array, palette: Palette) -> Image.Image:
    """Class ids (H, W) as a palette picture: its pixel values are the ids, its colours are the classes'."""
    image = Image.fromarray(mask, "L")
    image.putpalette([value for colour in palette for value in colour])
    return image


def overlay(image: Image.Image, mask: UInt8Array, palette: Palette, opacity: float = 0.5) -> Image.Image:
    """The RGB image (H, W), blended with the colours of its class ids (H, W)."""
    colours = palette_image(mask, palette).convert("RGB")
    return Image.blend(image, colours, opacity)


def contact_sheet(pairs: Sequence[tuple[Image.Image, Image.Image]], columns: int = 3) -> Image.Image:
    """Pairs of pictures side by side, ``columns`` pairs a row, each fitted into 320x240 pixels."""
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    width, height = 2 * _THUMB[0] + 2 * _GAP, _THUMB[1] + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    for place, pair in enumerate(pairs):
        left, top = _GAP + place % columns * width, _GAP + place // columns * height
        for side, picture in enumerate(pair):
            small = picture.copy()
            small.thumbnail(_THUMB)
            sheet.paste(small, (left + side * _THUMB[0], top))
    return sheet
