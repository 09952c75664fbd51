"""Masks, overlays and contact sheets as pictures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from gkd_scale.segment.pictures import contact_sheet, overlay, palette_image

PALETTE = [(200, 0, 0), (0, 100, 0)]


def test_a_mask_keeps_its_ids_and_shows_its_colours() -> None:
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    buffer = io.BytesIO()
    palette_image(mask, PALETTE).save(buffer, "PNG")
    image = Image.open(io.BytesIO(buffer.getvalue()))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[0], PALETTE)


def test_an_overlay_is_half_image_and_half_colour() -> None:
    image = Image.new("RGB", (1, 1), (100, 200, 50))
    pixel = np.asarray(overlay(image, np.array([[1]], np.uint8), PALETTE))[0, 0]
    np.testing.assert_allclose(pixel, (50, 150, 25), atol=1)


def test_a_contact_sheet_holds_every_pair() -> None:
    red, blue = Image.new("RGB", (640, 480), "red"), Image.new("RGB", (30, 60), "blue")
    sheet = contact_sheet([(red, blue)] * 4, columns=3)
    counts = {colour: count for count, colour in sheet.getcolors(1 << 20)}
    assert counts[(255, 0, 0)] == 4 * 320 * 240
    assert counts[(0, 0, 255)] == 4 * 30 * 60
