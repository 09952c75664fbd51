"""``gkd-scale predict``: what is written for which image, going on, and mistakes."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gkd_scale import config
from gkd_scale.cli import main
from gkd_scale.errors import DataError
from gkd_scale.models.backbone import load_backbone
from gkd_scale.segment import export
from gkd_scale.segment.config import PredictConfig
from gkd_scale.segment.inference import predict as classes_of
from gkd_scale.segment.inference import prepare
from gkd_scale.segment.predict import output_stems
from gkd_scale.segment.predict import predict as run_prediction
from tests.conftest import write_images

from .support import CLASSES, COLOURS, Blocks, write_folder, write_run

SIZE = (32, 48)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def predict(run: Path, images: object, out: Path, *flags: str) -> int:
    return main(["predict", str(run), "--images", str(images), "--out", str(out), "--workers", "1", *flags])


def expected(run: Path, image: Path) -> np.ndarray:  # type: ignore[type-arg]
    """The class map of an image file, by the inference that evaluate uses."""
    segmenter, _ = export.load_segmenter(run)
    pixels = np.asarray(Image.open(image).convert("RGB"))
    return classes_of(segmenter, [prepare(pixels, SIZE)[None]], [(pixels.shape[0], pixels.shape[1])])[
        0
    ].numpy()


def test_masks_mirror_the_folders_at_the_images_size(run: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    write_images(images / "a/b", 2, (50, 40))
    write_images(images, 3, (32, 48), seed=1)
    assert predict(run, images, out, "--overlay", "--save-logits") == 0
    masks = sorted(str(path.relative_to(out / "masks")) for path in (out / "masks").rglob("*.png"))
    assert masks == ["000.png", "001.png", "002.png", "a/b/000.png", "a/b/001.png"]
    for name in masks:
        mask = Image.open(out / "masks" / name)
        np.testing.assert_array_equal(np.asarray(mask), expected(run, images / name))
        assert mask.getpalette()[:12] == COLOURS.flatten().tolist()  # type: ignore[index]
        logits = np.load((out / "logits" / name).with_suffix(".npz"))["logits"]
        assert logits.shape == (len(CLASSES), mask.height, mask.width)
        assert (logits.argmax(0) == np.asarray(mask)).mean() > 0.99
        with Image.open((out / "overlays" / name).with_suffix(".jpg")) as overlay:
            assert overlay.size == mask.size
    with Image.open(out / "contact-sheet.jpg") as sheet:
        assert sheet.width > 640
    assert json.loads((out / "predict.json").read_text())["classes"] == list(CLASSES)


def test_the_same_command_goes_on_and_redoes_nothing(run: Path, tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 4), tmp_path / "out"
    assert predict(run, images, out) == 0
    mine = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    (out / "masks/002.png").unlink()
    assert predict(run, images, out) == 0
    after = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    assert [path.name for path in mine if mine[path] != after[path]] == ["002.png"]


def test_images_that_cannot_be_read_are_listed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = write_images(tmp_path / "images", 2), tmp_path / "out"
    (images / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (9000, 1)).save(images / "line.png")
    assert predict(run, images, out) == 0
    output = capsys.readouterr()
    assert "2 of 4 images predicted" in output.out
    assert "'broken.jpg'" in output.err
    bad, line = (out / "not-predicted.txt").read_text().splitlines()
    assert bad.startswith("broken.jpg\t")
    assert line.startswith("line.png\tit is 1x9000")


def test_patterns_single_files_lists_and_datasets(run: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 3)
    (tmp_path / "list.txt").write_text("images/001.png\n../elsewhere.png\n")
    for number, (what, count) in enumerate(
        [(images / "00[01].png", 2), (images / "002.png", 1), (tmp_path / "list.txt", 1)]
    ):
        out = tmp_path / f"out{number}"
        assert predict(run, what, out) == 0
        assert len(list((out / "masks").rglob("*.png"))) == count
    assert not list(tmp_path.parent.glob("elsewhere*"))


@pytest.mark.parametrize(
    ("images", "out", "message"),
    [("nowhere", "out", "nowhere"), ("*.png", "out", "no image matches"), ("broken", "out", "none of the 1")],
)
def test_mistakes(
    images: str, out: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.jpg").write_bytes(b"no image")
    assert predict(run, tmp_path / images, tmp_path / out) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_other_things_or_of_another_run_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = write_images(tmp_path / "images", 1), tmp_path / "out"
    assert predict(run, images, images) == 2
    assert "holds other files" in capsys.readouterr().err
    assert predict(run, images, out) == 0
    assert predict(run, images, out, "--tta-flip") == 2
    assert "another inference" in capsys.readouterr().err
    stage1 = tmp_path / "stage1"
    load_backbone(None, "demo_student").save(stage1)
    assert predict(stage1, images, tmp_path / "other") == 2
    assert "no finished stage-2 run" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "..", "c.d", "/"]), min_size=1, max_size=3).map("/".join),
    min_size=1,
    max_size=6,
    unique=True,
)


@given(NAMES, st.lists(st.sampled_from([".jpg", ".png"]), min_size=6, max_size=6))
def test_stems_differ_and_stay_inside(names: list[str], suffixes: list[str]) -> None:
    full = [f"{name}/x{suffix}" for name, suffix in zip(names, suffixes, strict=False)]
    try:
        stems = output_stems(full)
    except DataError:
        return
    assert len(set(stems)) == len(full)
    assert all(".." not in Path(stem).parts and not Path(stem).is_absolute() for stem in stems)


def test_a_labelled_dataset_needs_no_command_line(run: Path, tmp_path: Path) -> None:
    """As ``launchers/predict.py`` calls it."""
    data = write_folder(tmp_path / "data", Blocks(2))
    flags = (str(run), "--images", f"folder:{data}", "--out", str(tmp_path / "out"))
    cfg = config.parse(PredictConfig, flags, prog="predict.py", description="")
    assert run_prediction(cfg) == 0
    assert len(list((tmp_path / "out/masks").iterdir())) == 2


def test_tars_pipes_and_long_names(run: Path, tmp_path: Path) -> None:
    images, out = write_images(tmp_path / "images", 2), tmp_path / "out"
    (images / "000.png").rename(images / f"{'é' * 120}.png")
    os.mkfifo(images / "pipe.png")
    assert predict(run, images, out) == 0
    assert len(list((out / "masks").iterdir())) == 2
    assert (out / "not-predicted.txt").read_text().startswith("pipe.png\t")
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(images / "001.png", "../x.png")
    assert predict(run, tmp_path / "some.tar", tmp_path / "from-tar") == 0
    (mask,) = (tmp_path / "from-tar/masks").rglob("*.png")
    assert mask.read_bytes() == (out / "masks/001.png").read_bytes()


def test_images_that_differ_by_their_suffix_keep_it() -> None:
    assert len(set(output_stems(["a.jpg", "a.png", "a.jpg.png"]))) == 3
    assert output_stems(["a/b.jpg", "a/b.png", "a/c.png"]) == ["a/b.jpg", "a/b.png", "a/c"]
