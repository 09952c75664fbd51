"""Kind A: one image reader for everything, labelled or not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from gkd_scale.segment.datasets.registry import open_dataset
from gkd_scale.types import UInt8Array
from tests.cases.case import Bench, Ran, case
from tests.cases.labelled import (
    PNG,
    SCENES,
    Save,
    cache_images,
    evaluate,
    features,
    folder,
    grey,
    same_features,
    saver,
)
from tests.segment.datasets.miniature import write_grey, write_png16, write_tiff

KIND = "A. One image reader"

GREY = saver(".png", grey)
GREY16 = saver(".png", lambda pixels: grey(pixels).astype(np.uint16) * 257)
GREY12 = saver(".png", lambda pixels: grey(pixels).astype(np.uint16) * 16)


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _same(bench: Bench, usual: Save, other: Save) -> Ran:
    """Evaluate the same scenes in two forms: the scores have to be equal."""
    ran, scores = evaluate(bench, folder(bench.folder / "a", usual), folder(bench.folder / "b", other))
    assert scores and scores[0] == scores[1] > 0, (ran.text, scores)
    return ran


@case(KIND, "evaluate: greys in 16 bits score as the same scenes in 8 bits")
def grey16(bench: Bench) -> object:
    return _same(bench, GREY, GREY16)


@case(KIND, "evaluate: 16-bit TIFFs in which white is zero (X-rays) score as the same scenes in 8 bits")
def white_is_zero(bench: Bench) -> object:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    negative = saver(".tif", lambda pixels: 65535 - grey(pixels).astype(np.uint16) * 257, tiffinfo=info)
    return _same(bench, GREY, negative)


@case(KIND, "evaluate: float TIFFs from 0 to 1 score as the same scenes in 8 bits")
def floats(bench: Bench) -> object:
    return _same(bench, GREY, saver(".tif", lambda pixels: grey(pixels).astype(np.float32) / 255))


@case(KIND, "evaluate: float TIFFs from 0 to 255 score as the same scenes in 8 bits")
def floats_255(bench: Bench) -> object:
    return _same(bench, GREY, saver(".tiff", lambda pixels: grey(pixels).astype(np.float32)))


@case(KIND, "evaluate: PNGs of three 16-bit channels score as the same scenes in 8 bits")
def rgb16(bench: Bench) -> object:
    def wide(pixels: UInt8Array, path: Path) -> object:
        return write_png16(path.with_suffix(".png"), pixels.astype(np.uint16) * 257)

    return _same(bench, PNG, wide)


@case(KIND, "evaluate: photographs that EXIF turns by 180° score as the same ones stored upright")
def exif_180(bench: Bench) -> object:
    return _same(bench, PNG, saver(".png", lambda pixels: np.rot90(pixels, 2).copy(), exif=_exif(3)))


@case(KIND, "evaluate: photographs that EXIF turns by 90° score as the same ones stored upright")
def exif_90(bench: Bench) -> object:
    return _same(bench, PNG, saver(".png", lambda pixels: np.rot90(pixels, 1).copy(), exif=_exif(6)))


@case(KIND, "evaluate: photographs that EXIF turns by 90°, labels drawn as they are stored")
def exif_size(bench: Bench) -> object:
    ran, _ = evaluate(bench, folder(bench.folder / "a", saver(".jpg", lambda pixels: pixels, exif=_exif(6))))
    assert ran.code == 2 and "EXIF orientation 6" in ran.text, ran.text
    return ran


@case(KIND, "evaluate: alpha lies over black, as in a cache")
def alpha(bench: Bench) -> object:
    def clear(pixels: UInt8Array) -> UInt8Array:
        opaque = np.arange(pixels.shape[1]) < pixels.shape[1] // 2
        return np.dstack([pixels, np.broadcast_to(np.uint8(255) * opaque, pixels.shape[:2])]).astype(np.uint8)

    return _same(
        bench,
        saver(".png", lambda pixels: clear(pixels)[..., :3] * (clear(pixels)[..., 3:] > 0)),
        saver(".png", clear),
    )


@case(KIND, "evaluate: a sensor's 12 bits in 16-bit PNGs")
def twelve_bits(bench: Bench) -> object:
    ran, _ = evaluate(bench, folder(bench.folder / "a", GREY12))
    assert ran.code == 2 and "12-bit" in ran.text
    return ran


@case(KIND, "evaluate: 8-bit values in 16-bit PNGs of three channels")
def eight_in_sixteen(bench: Bench) -> object:
    def narrow(pixels: UInt8Array, path: Path) -> object:
        return write_png16(path.with_suffix(".png"), pixels.astype(np.uint16))

    ran, _ = evaluate(bench, folder(bench.folder / "a", narrow))
    assert ran.code == 2 and "8-bit" in ran.text
    return ran


@case(KIND, "evaluate: float TIFFs that were normalised to -1 to 1")
def signed_floats(bench: Bench) -> object:
    root = folder(bench.folder / "a", saver(".tif", lambda pixels: np.float32(pixels[..., 0] / 127.5 - 1)))
    ran, _ = evaluate(bench, root)
    assert ran.code == 2
    return ran


@case(KIND, "datasets check: a sensor's 10 bits in 16-bit TIFFs, without --decode")
def check_deep(bench: Bench) -> object:
    root = folder(bench.folder / "a", saver(".tif", lambda pixels: grey(pixels).astype(np.uint16) * 4))
    ran = bench.cli("datasets", "check", "folder", root, "--json")
    faults = json.loads(ran.text)[0]["faults"]
    assert ran.code == 1 and len(faults) == 3
    return f"exit 1: {faults[0]}"


@case(
    KIND,
    "cache-teacher: a labelled folder and its images alone (16 bits, EXIF, alpha) give the same features",
)
def both_ways(bench: Bench) -> object:
    rotation = saver(".png", lambda pixels: np.rot90(pixels, 1).copy(), exif=_exif(6))
    clear = saver(".png", lambda pixels: np.dstack([pixels, pixels[..., 0]]))
    forms = iter([GREY16, rotation, clear])
    root = folder(bench.folder / "a", lambda pixels, path: next(forms)(pixels, path))
    ran = cache_images(bench, root / "images", bench.folder / "images-alone")
    assert ran.code == 0, ran.text
    ran = cache_images(bench, f"folder:{root}", bench.folder / "labelled")
    assert same_features(bench.folder / "images-alone", bench.folder / "labelled"), ran.text
    return ran


@case(KIND, "cache-teacher: one image of three has 12 bits in 16")
def one_of_three(bench: Bench) -> object:
    forms = iter([GREY16, GREY12, GREY16])
    root = folder(bench.folder / "a", lambda pixels, path: next(forms)(pixels, path))
    ran = cache_images(bench, root / "images", bench.folder / "cache")
    assert len(features(bench.folder / "cache")) == 2
    assert "1 of 3 images could not be read" in ran.text and "001.png: its 16-bit values" in ran.text
    return f"{ran}, with the line"


@case(KIND, "cache-teacher: all images have 14 bits in 16 (satellites)")
def all_fourteen(bench: Bench) -> object:
    root = folder(bench.folder / "a", saver(".tif", lambda pixels: grey(pixels).astype(np.uint16) * 64))
    ran = cache_images(bench, root / "images", bench.folder / "cache")
    assert ran.code == 2 and not (bench.folder / "cache").exists()
    return ran


@case(KIND, "stage 2: a sensor's 12 bits in 16-bit PNGs to train on")
def stage2_twelve(bench: Bench) -> object:
    root = folder(bench.folder / "a", GREY12)
    ran = bench.stage2(
        *("--backbone", "pretrained", "--student", "demo_student", "--image-size", "32x48", "--steps", 1),
        *("--train", f"folder:{root}", "--val", f"folder:{root}", "--out", bench.folder / "out"),
        *("--ds-config", "zero0.json"),
    )
    assert ran.code == 2 and "12-bit" in ran.text, ran.text
    return ran


@case(KIND, "a label that EXIF turns is turned with its image")
def exif_label(bench: Bench) -> object:
    rotation = saver(".png", lambda pixels: np.rot90(pixels, 2).copy(), exif=_exif(3))
    root = folder(bench.folder / "a", rotation)
    upright = open_dataset(f"folder:{root}")[0].label
    label = np.rot90(upright, 2).copy()
    Image.fromarray(label).save(root / "labels/000.png", exif=_exif(3))
    assert (open_dataset(f"folder:{root}")[0].label == upright).all()
    return evaluate(bench, root)[0]


def _tiff(change: Callable[[UInt8Array], npt.NDArray[Any]], **how: Any) -> Save:
    return lambda pixels, path: write_tiff(path.with_suffix(".tif"), change(pixels), **how)


def _refusal(bench: Bench, save: Save, message: str) -> Ran:
    """Evaluate and cache-teacher refuse the same scenes in this form, for one reason."""
    root = folder(bench.folder / "a", save)
    ran, _ = evaluate(bench, root)
    assert ran.code == 2 and message in ran.text, ran.text
    alone = cache_images(bench, root / "images", bench.folder / "cache")
    assert alone.code == 2 and message in alone.text and not (bench.folder / "cache").exists(), alone.text
    return ran


def _wide(pixels: UInt8Array) -> npt.NDArray[np.uint16]:
    return pixels.astype(np.uint16) * 257


@case(KIND, "evaluate: 16-bit RGB TIFFs whose channels lie one behind the other, compressed")
def planes_packed(bench: Bench) -> object:
    return _same(bench, PNG, _tiff(_wide, planes=True, compress=True))


@case(KIND, "evaluate: the same, not compressed (GDAL's INTERLEAVE=BAND), which Pillow reads as noise")
def planes(bench: Bench) -> object:
    return _refusal(bench, _tiff(_wide, planes=True), "one behind the other")


@case(KIND, "evaluate: compressed float TIFFs in Motorola's byte order, which Pillow reads as black")
def motorola(bench: Bench) -> object:
    save = _tiff(lambda pixels: grey(pixels).astype(np.float32), order=">", compress=True)
    return _refusal(bench, save, "byte order")


@case(KIND, "evaluate: float TIFFs in Motorola's byte order score as the same scenes in 8 bits")
def motorola_plain(bench: Bench) -> object:
    return _same(bench, GREY, _tiff(lambda pixels: grey(pixels).astype(np.float32), order=">"))


@case(KIND, "evaluate: 16-bit TIFFs of signed integers, of which half the range is used")
def integers(bench: Bench) -> object:
    return _refusal(bench, _tiff(lambda pixels: grey(pixels).astype(np.int16) * 128), "signed")


@case(KIND, "evaluate: 8-bit TIFFs of signed integers, which Pillow reads as if they were not")
def signed_8(bench: Bench) -> object:
    return _refusal(bench, _tiff(lambda pixels: (grey(pixels) ^ 128).view(np.int8)), "signed")


@case(KIND, "evaluate: 12 bits in 16, with 65535 where data are missing")
def missing(bench: Bench) -> object:
    def change(pixels: UInt8Array) -> npt.NDArray[np.uint16]:
        values = grey(pixels).astype(np.uint16) * 16
        values[:2] = 65535
        return values

    return _refusal(bench, saver(".png", change), "12-bit")


@case(KIND, "evaluate: the same in three channels")
def missing_rgb(bench: Bench) -> object:
    def save(pixels: UInt8Array, path: Path) -> object:
        values = pixels.astype(np.uint16) * 16
        values[:2] = 65535
        return write_png16(path.with_suffix(".png"), values)

    return _refusal(bench, save, "12-bit")


@case(KIND, "evaluate: night in 16 bits, so dark that it would fit into 12 bits, scores as in 8 bits")
def dark(bench: Bench) -> object:
    return _same(
        bench, saver(".png", lambda pixels: grey(pixels) // 17), saver(".png", lambda p: _wide(grey(p) // 17))
    )


@case(KIND, "evaluate: TIFFs with a palette that counts to 255, not to 65535")
def palette_255(bench: Bench) -> object:
    colours = [value for _ in range(3) for value in range(256)]
    return _refusal(bench, _tiff(grey, tags={262: [3], 320: colours}), "palette")


@case(KIND, "evaluate: TIFFs whose three channels are three pages (arrays of channels, rows, columns)")
def pages(bench: Bench) -> object:
    def save(pixels: UInt8Array, path: Path) -> object:
        first, *others = (Image.fromarray(pixels[..., each]) for each in range(3))
        return first.save(path.with_suffix(".tif"), save_all=True, append_images=others)

    return _refusal(bench, save, "channels of one image")


@case(KIND, "evaluate: float TIFFs of three channels: the reason says what they are")
def float_rgb(bench: Bench) -> object:
    save = _tiff(lambda pixels: (pixels / 255).astype(np.float32))
    return _refusal(bench, save, "3 channels of 32-bit floats")


@case(KIND, "evaluate: TIFFs of five bands (satellites): the reason says what they are")
def bands(bench: Bench) -> object:
    save = _tiff(lambda pixels: np.dstack([pixels, pixels[..., :2]]).astype(np.uint16) * 257)
    return _refusal(bench, save, "5 channels of 16-bit unsigned integers")


@case(KIND, "evaluate: alpha that is multiplied into the colours of TIFFs lies over black")
def dark_alpha(bench: Bench) -> object:
    ramp = np.linspace(0, 255, 48).astype(np.uint8)

    def over_black(pixels: UInt8Array) -> UInt8Array:
        return np.round(pixels * (ramp[:, None] / 255)).astype(np.uint8)

    def with_alpha(pixels: UInt8Array) -> UInt8Array:
        return np.dstack([over_black(pixels), np.broadcast_to(ramp, pixels.shape[:2])])

    root = folder(bench.folder / "a", _tiff(with_alpha, tags={262: [2], 338: [1]}))
    for sample, scene in zip(open_dataset(f"folder:{root}"), SCENES.samples, strict=False):  # type: ignore[call-overload]
        np.testing.assert_allclose(sample.image[:, 8:], over_black(scene.image)[:, 8:], atol=4)
    return evaluate(bench, root)[0]


@case(KIND, "evaluate: 4-bit grey PNGs with a transparent grey, which lies over black")
def clear_grey(bench: Bench) -> object:
    def low(pixels: UInt8Array) -> UInt8Array:
        return grey(pixels) // 17

    return _same(
        bench,
        saver(".png", lambda pixels: np.where(low(pixels) == 8, 0, 17 * low(pixels)).astype(np.uint8)),
        lambda pixels, path: write_grey(path.with_suffix(".png"), low(pixels), 4, clear=8),
    )


@case(KIND, "evaluate: EXIF orientations 2 to 8 of PNG, WebP and TIFF, in 8 and in 16 bits")
def exif_all(bench: Bench) -> object:
    others = {
        2: lambda p: p[:, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p, -1),
    }
    turns = {**others, 3: lambda p: np.rot90(p, 2), 6: lambda p: np.rot90(p, 1)}
    forms = itertools.cycle(itertools.product(turns.items(), (".png", ".webp", ".tif", "16.png", "16.tif")))

    def save(pixels: UInt8Array, path: Path) -> object:
        (orientation, turn), suffix = next(forms)
        values = np.ascontiguousarray(turn(grey(pixels)))
        image = Image.fromarray(_wide(values) if suffix.startswith("16") else values)
        exif = Image.Exif()
        exif[0x0112] = orientation
        lossless = {"lossless": True} if suffix == ".webp" else {}
        return image.save(path.with_suffix(suffix.removeprefix("16")), exif=exif, **lossless)

    for number in range(12):  # 3 files each: all 35 forms
        one, other = bench.folder / f"a{number}", bench.folder / f"b{number}"
        pairs = zip(
            open_dataset(f"folder:{folder(one, GREY)}"),  # type: ignore[call-overload]
            open_dataset(f"folder:{folder(other, save)}"),  # type: ignore[call-overload]
            strict=True,
        )
        assert all((a.image == b.image).all() for a, b in pairs)
    ran, scores = evaluate(bench, one, other)
    assert scores[0] == scores[1]
    return ran
