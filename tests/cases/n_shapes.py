"""Kind N: extreme shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gkd_scale
from gkd_scale.errors import DataError
from tests.cache.bad_input import png
from tests.cases.case import Bench, Ran, case
from tests.cases.labelled import PNG, SIZE, cache_images, evaluate, features, finished_run, folder

KIND = "N. Extreme shapes"


def _pair(root: Path, height: int, width: int, name: str = "long") -> Path:
    """One more image and label of this size."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / f"images/{name}.png")
    Image.fromarray(rng.integers(0, 4, (height, width), np.uint8)).save(root / f"labels/{name}.png")
    return root


def _with(bench: Bench, height: int, width: int, *flags: object) -> Ran:
    root = _pair(folder(bench.folder / "day", PNG), height, width)
    ran, _ = evaluate(bench, root, flags=flags)
    return ran


def _count(bench: Bench, ran: Ran, images: int = 4) -> Ran:
    scores = json.loads((bench.folder / "run/evaluation.json").read_text())
    assert ran.code == 0 and scores["day"]["images"] == images, ran.text
    return ran


@case(KIND, "evaluate: one image of 3000x1 pixels")
def line(bench: Bench) -> object:
    return _with(bench, 1, 3000)


@case(KIND, "evaluate: one image of 1x3000 pixels")
def column(bench: Bench) -> object:
    return _with(bench, 3000, 1)


@case(KIND, "evaluate by windows: one image of 900x1 pixels")
def line_by_windows(bench: Bench) -> object:
    return _count(bench, _with(bench, 1, 900, "--inference", "slide"))


@case(KIND, "evaluate by windows: one image of 100000x1 pixels")
def endless(bench: Bench) -> object:
    return _with(bench, 1, 100_000, "--inference", "slide")


@case(KIND, "evaluate: one image of 3000x1 pixels, at several scales and mirrored")
def line_tta(bench: Bench) -> object:
    return _with(bench, 1, 3000, "--tta-scales", 0.5, 1.5, "--tta-flip")


@case(KIND, "evaluate: an image of 1x1 pixel")
def pixel(bench: Bench) -> object:
    return _count(bench, _with(bench, 1, 1))


@case(KIND, "evaluate: a panorama of 20:1")
def panorama(bench: Bench) -> object:
    return _count(bench, _with(bench, 20, 400))


def _stage2(bench: Bench, train: Path, val: Path, *flags: object) -> Ran:
    finished_run(bench)
    return bench.stage2(
        *("--backbone", bench.folder / "run", "--image-size", "x".join(map(str, SIZE)), "--steps", 2),
        *("--train", f"folder:{train}", "--val", f"folder:{val}", "--val-every", 2, "--global-batch", 2),
        *("--ds-config", "zero0.json", "--out", bench.folder / "out", "--workers", 0, *flags),
    )


@case(KIND, "stage 2: an image of 3000x1 pixels to validate on")
def stage2_val(bench: Bench) -> object:
    day = folder(bench.folder / "day", PNG)
    val = _pair(folder(bench.folder / "val", PNG), 1, 3000)
    ran = _stage2(bench, day, val)
    assert ran.code == 2 and not (bench.folder / "out/checkpoints").exists()
    return ran


@case(KIND, "stage 2: images of 3000x1 and 1x3000 pixels to train on")
def stage2_train(bench: Bench) -> object:
    day = folder(bench.folder / "day", PNG)
    train = _pair(_pair(folder(bench.folder / "train", PNG), 1, 3000, "000"), 3000, 1, "001")
    ran = _stage2(bench, train, day)
    assert ran.code == 0, ran.text
    return ran


@case(KIND, "cache-teacher: labelled images of 3000x1, 1x3000 and 1x1 pixels")
def caches(bench: Bench) -> object:
    root = folder(bench.folder / "day", PNG)
    for index, (height, width) in enumerate([(1, 3000), (3000, 1), (1, 1)]):
        _pair(root, height, width, f"{index:03}")
    ran = cache_images(bench, f"folder:{root}", bench.folder / "cache")
    assert ran.code == 0 and len(features(bench.folder / "cache")) == 3, ran.text
    return ran


@case(KIND, "probe: images of 3000x1 and 1x3000 pixels")
def probe(bench: Bench) -> object:
    from tests.cases.labelled import teacher_weights
    from tests.conftest import tiny_args

    root = _pair(_pair(folder(bench.folder / "day", PNG), 1, 3000, "000"), 3000, 1, "001")
    ran = bench.cli(
        *("probe", "--teacher", "vit_tiny_patch16_224", "--teacher-weights", teacher_weights()),
        *("--teacher-args", *tiny_args(), "--image-size", "32x48", "--train", f"folder:{root}"),
        *("--val", f"folder:{root}", "--out", bench.folder / "probe"),
    )
    assert (bench.folder / "probe/probe.json").is_file(), ran.text
    return ran


@case(KIND, "report: one image of 3000x1 pixels")
def report(bench: Bench) -> object:
    day = folder(bench.folder / "day", PNG)
    assert _stage2(bench, day, day).code == 0
    long = _pair(folder(bench.folder / "long", PNG), 1, 3000, "line")
    out = bench.folder / "report.html"
    ran = bench.cli("report", bench.folder / "out", "--data", f"day=folder:{long}", "--out", out)
    assert ran.code == 2 and "line: the image is 1x3000" in ran.text and not out.exists(), ran.text
    return ran


def _predict(bench: Bench, *flags: object) -> Ran:
    out = bench.folder / "out"
    return bench.cli(
        "predict", finished_run(bench), "--images", bench.folder / "photos", "--out", out, *flags
    )


def _photo(bench: Bench, height: int, width: int, name: str = "0") -> None:
    (bench.folder / "photos").mkdir(exist_ok=True)
    Image.new("RGB", (width, height), (9, 99, 199)).save(bench.folder / f"photos/{name}.png")


@case(KIND, "predict: one image, of 3000x1 pixels")
def predict_line(bench: Bench) -> object:
    _photo(bench, 1, 3000)
    ran = _predict(bench)
    assert ran.code == 2 and not (bench.folder / "out").exists(), ran.text
    return f"exit 2: {ran.text.partition('error: ')[2]}"


@case(KIND, "predict: images of 1x1 and 400x5 pixels, with overlays and logits")
def predict_pixel(bench: Bench) -> object:
    _photo(bench, 1, 1)
    _photo(bench, 5, 400, "1")
    ran = _predict(bench, "--overlay", "--save-logits")
    assert ran.code == 0 and "2 of 2 images predicted" in ran.text, ran.text
    return ran


@case(KIND, "predict: a PNG that claims 20000x20000 pixels, and one of 0x0, beside a good one")
def predict_bomb(bench: Bench) -> object:
    _photo(bench, 32, 48)
    for size in (20000, 0):
        (bench.folder / f"photos/of-{size}.png").write_bytes(png(size, size, 8, 2, b"\0" * 100))
    ran = _predict(bench)
    assert "1 of 3 images predicted" in ran.text, ran.text
    return f"exit {ran.code}: {ran.text.partition('shows 1 ')[2]}"


@case(KIND, "datasets check: an image that claims 20000x20000 pixels")
def check_bomb(bench: Bench) -> object:
    root = folder(bench.folder / "day", PNG)
    (root / "images/000.png").write_bytes(png(20000, 20000, 8, 2, b"\0" * 100))
    ran = bench.cli("datasets", "check", "folder", root, "--json")
    faults = json.loads(ran.text)[0]["faults"]
    assert ran.code == 1 and len(faults) == 1
    return f"exit 1: {faults[0]}"


@case(KIND, "Python: arrays without pixels, and a PIL image of 10 bits in 16")
def in_python(bench: Bench) -> object:
    segmenter = gkd_scale.load_segmenter(finished_run(bench), device="cpu")
    images = [np.zeros((0, 48, 3), np.uint8), Image.fromarray(np.full((4, 4), 999, np.uint16))]
    messages = []
    for image in images:
        with pytest.raises(DataError) as error:
            segmenter.predict(image)
        messages.append(f"DataError: {error.value.message}")
    return "; ".join(messages)
