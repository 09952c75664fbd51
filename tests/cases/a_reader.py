"""Kind A: one image reader for everything, labelled or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from gkd_scale.segment.datasets.registry import open_dataset
from gkd_scale.types import UInt8Array
from tests.cases.case import Bench, Ran, case
from tests.cases.labelled import (
    PNG,
    Save,
    cached,
    evaluated,
    features,
    folder,
    grey,
    same_features,
    saved,
)
from tests.segment.datasets.miniature import write_png16

KIND = "A. One image reader"

GREY = saved(".png", grey)
GREY16 = saved(".png", lambda pixels: grey(pixels).astype(np.uint16) * 257)
GREY12 = saved(".png", lambda pixels: grey(pixels).astype(np.uint16) * 16)


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _same(bench: Bench, usual: Save, other: Save) -> Ran:
    """Evaluate the same scenes in two forms: the scores have to be equal."""
    ran, scores = evaluated(bench, folder(bench.folder / "a", usual), folder(bench.folder / "b", other))
    assert scores and scores[0] == scores[1] > 0, (ran.text, scores)
    return ran


@case(KIND, "evaluate: greys in 16 bits score as the same scenes in 8 bits")
def grey16(bench: Bench) -> object:
    return _same(bench, GREY, GREY16)


@case(KIND, "evaluate: 16-bit TIFFs in which white is zero (X-rays) score as the same scenes in 8 bits")
def white_is_zero(bench: Bench) -> object:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    negative = saved(".tif", lambda pixels: 65535 - grey(pixels).astype(np.uint16) * 257, tiffinfo=info)
    return _same(bench, GREY, negative)


@case(KIND, "evaluate: float TIFFs from 0 to 1 score as the same scenes in 8 bits")
def floats(bench: Bench) -> object:
    return _same(bench, GREY, saved(".tif", lambda pixels: grey(pixels).astype(np.float32) / 255))


@case(KIND, "evaluate: float TIFFs from 0 to 255 score as the same scenes in 8 bits")
def floats_255(bench: Bench) -> object:
    return _same(bench, GREY, saved(".tiff", lambda pixels: grey(pixels).astype(np.float32)))


@case(KIND, "evaluate: PNGs of three 16-bit channels score as the same scenes in 8 bits")
def rgb16(bench: Bench) -> object:
    def wide(pixels: UInt8Array, path: Path) -> object:
        return write_png16(path.with_suffix(".png"), pixels.astype(np.uint16) * 257)

    return _same(bench, PNG, wide)


@case(KIND, "evaluate: photographs that EXIF turns by 180° score as the same ones stored upright")
def exif_180(bench: Bench) -> object:
    return _same(bench, PNG, saved(".png", lambda pixels: np.rot90(pixels, 2).copy(), exif=_exif(3)))


@case(KIND, "evaluate: photographs that EXIF turns by 90° score as the same ones stored upright")
def exif_90(bench: Bench) -> object:
    return _same(bench, PNG, saved(".png", lambda pixels: np.rot90(pixels, 1).copy(), exif=_exif(6)))


@case(KIND, "evaluate: photographs that EXIF turns by 90°, labels drawn as they are stored")
def exif_size(bench: Bench) -> object:
    ran, _ = evaluated(bench, folder(bench.folder / "a", saved(".jpg", lambda pixels: pixels, exif=_exif(6))))
    assert ran.code == 2 and "EXIF orientation 6" in ran.text, ran.text
    return ran


@case(KIND, "evaluate: alpha lies over black, as in a cache")
def alpha(bench: Bench) -> object:
    def clear(pixels: UInt8Array) -> UInt8Array:
        opaque = np.arange(pixels.shape[1]) < pixels.shape[1] // 2
        return np.dstack([pixels, np.broadcast_to(np.uint8(255) * opaque, pixels.shape[:2])]).astype(np.uint8)

    return _same(
        bench,
        saved(".png", lambda pixels: clear(pixels)[..., :3] * (clear(pixels)[..., 3:] > 0)),
        saved(".png", clear),
    )


@case(KIND, "evaluate: a sensor's 12 bits in 16-bit PNGs")
def twelve_bits(bench: Bench) -> object:
    ran, _ = evaluated(bench, folder(bench.folder / "a", GREY12))
    assert ran.code == 2 and "12-bit" in ran.text
    return ran


@case(KIND, "evaluate: 8-bit values in 16-bit PNGs of three channels")
def eight_in_sixteen(bench: Bench) -> object:
    def narrow(pixels: UInt8Array, path: Path) -> object:
        return write_png16(path.with_suffix(".png"), pixels.astype(np.uint16))

    ran, _ = evaluated(bench, folder(bench.folder / "a", narrow))
    assert ran.code == 2 and "8-bit" in ran.text
    return ran


@case(KIND, "evaluate: float TIFFs that were normalised to -1 to 1")
def normalised(bench: Bench) -> object:
    root = folder(bench.folder / "a", saved(".tif", lambda pixels: np.float32(pixels[..., 0] / 127.5 - 1)))
    ran, _ = evaluated(bench, root)
    assert ran.code == 2
    return ran


@case(KIND, "datasets check: a sensor's 10 bits in 16-bit TIFFs, without --decode")
def check_deep(bench: Bench) -> object:
    root = folder(bench.folder / "a", saved(".tif", lambda pixels: grey(pixels).astype(np.uint16) * 4))
    ran = bench.cli("datasets", "check", "folder", root, "--json")
    faults = json.loads(ran.text)[0]["faults"]
    assert ran.code == 1 and len(faults) == 3
    return f"exit 1: {faults[0]}"


@case(
    KIND,
    "cache-teacher: a labelled folder and its images alone (16 bits, EXIF, alpha) give the same features",
)
def both_ways(bench: Bench) -> object:
    turned = saved(".png", lambda pixels: np.rot90(pixels, 1).copy(), exif=_exif(6))
    clear = saved(".png", lambda pixels: np.dstack([pixels, pixels[..., 0]]))
    forms = iter([GREY16, turned, clear])
    root = folder(bench.folder / "a", lambda pixels, path: next(forms)(pixels, path))
    ran = cached(bench, root / "images", bench.folder / "images-alone")
    assert ran.code == 0, ran.text
    ran = cached(bench, f"folder:{root}", bench.folder / "labelled")
    assert same_features(bench.folder / "images-alone", bench.folder / "labelled"), ran.text
    return ran


@case(KIND, "cache-teacher: one image of three has 12 bits in 16")
def one_of_three(bench: Bench) -> object:
    forms = iter([GREY16, GREY12, GREY16])
    root = folder(bench.folder / "a", lambda pixels, path: next(forms)(pixels, path))
    ran = cached(bench, root / "images", bench.folder / "cache")
    assert len(features(bench.folder / "cache")) == 2
    assert "1 of 3 images could not be read" in ran.text and "001.png: its 16-bit values" in ran.text
    return f"{ran}, with the line"


@case(KIND, "cache-teacher: all images have 14 bits in 16 (satellites)")
def all_fourteen(bench: Bench) -> object:
    root = folder(bench.folder / "a", saved(".tif", lambda pixels: grey(pixels).astype(np.uint16) * 64))
    ran = cached(bench, root / "images", bench.folder / "cache")
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
    turned = saved(".png", lambda pixels: np.rot90(pixels, 2).copy(), exif=_exif(3))
    root = folder(bench.folder / "a", turned)
    upright = open_dataset(f"folder:{root}")[0].label
    stored = np.rot90(upright, 2).copy()
    Image.fromarray(stored).save(root / "labels/000.png", exif=_exif(3))
    assert (open_dataset(f"folder:{root}")[0].label == upright).all()
    return evaluated(bench, root)[0]
