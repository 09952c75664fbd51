"""``gkd-scale report``: what the page holds, for one run and several, and mistakes."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gkd_scale.cache.spec import digest, read_spec
from gkd_scale.cli import main
from gkd_scale.distill import heads
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.conditioning import Affine, Conditioning
from gkd_scale.segment.finished import load_segmenter
from tests.segment.support import CLASSES, Blocks, write_folder, write_run

VOID = ("meta", "img", "link", "br", "line", "polyline")


class Page(HTMLParser):
    """Checks that elements nest, that images have a text, and that nothing is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.around: str | None = None
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not any((value or "").startswith(("http", "//")) for value in values.values()), values
        if tag == "img":
            assert values["alt"] or "attention" in (self.around or "")
            assert (values["src"] or "").startswith("data:image/")
            self.images.append(values)
        self.around = values.get("class")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write_phase(folder: Path, config: dict[str, object], steps: int = 5) -> Path:
    """Beside a run's weights what its training leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"kind": "a training", "seconds": 60.0}))
    rows = [
        {"step": step, "loss": 1 / step, "lr": 1e-3, "images_per_s": 10.0} for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished stage-2 runs, the first with a stage 1 before it."""
    root = tmp_path_factory.mktemp("runs")
    write_phase(root / "1b", {"cache": ["caches/source"], "student_weights": str(root / "gone")})
    write_phase(root / "gkd", {"backbone": str(root / "1b"), "train": ["folder:my/city"]})
    write_phase(root / "none", {"backbone": None, "train": ["folder:my/city"]})
    for name, miou in (("gkd", 40.0), ("none", 30.0)):
        write_run(root / name)
        iou = dict.fromkeys(CLASSES, miou)
        scores = {"night": {"miou": miou, "iou": {**iou, "red": None}}, "fog": {"miou": miou + 2, "iou": iou}}
        (root / name / "evaluation.json").write_text(json.dumps(scores))
    return root


def test_a_page_of_two_runs_with_images(runs: Path, tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", Blocks(6)), tmp_path / "page.html"
    flags = ["--data", f"night=folder:{data}", "--out", str(out), "--scenes", "2", "--images", "5"]
    assert main(["report", str(runs / "gkd"), str(runs / "none"), *flags]) == 0
    page = Page(out.read_text())
    text = page.text()
    assert "stage 1: 1b" in text and "caches/source" in text and "folder:my/city" in text
    assert "gkd 50.0 40.0 42.0 41.0 0.82" in text, "home, night, fog, mean, kept"
    assert "none 50.0 30.0 32.0 31.0 0.62" in text
    assert "red – 42.0" not in text and "red – 40.0" in text
    assert "5 of 6 images were looked at" in text
    assert len(page.images) == 4 * (2 + 2 * 3), "four scenes: image, label, and three pictures a run"
    assert "data-maps" not in out.read_text(), "the cache of 1b is not here, so neither is its teacher"
    assert "mIoU over these images" in text and "Cost" in text
    assert all(name in text for name in CLASSES)


def test_a_domain_that_was_not_evaluated_has_the_mean_of_the_images_looked_at(
    runs: Path, tmp_path: Path
) -> None:
    data, out = write_folder(tmp_path / "data", Blocks(2)), tmp_path / "page.html"
    assert main(["report", str(runs / "gkd"), "--data", f"rain=folder:{data}", "--out", str(out)]) == 0
    text = Page(out.read_text()).text()
    assert "* Over the images below alone" in text
    assert "rain" in text.split("kept is")[1]


def test_a_stage_1_run_alone_shows_its_curves(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(runs / "1b"), "--out", str(out)]) == 0
    text = out.read_text()
    assert text.count("<polyline") == 3
    assert "mIoU by domain" not in text
    Page(text)


def test_two_runs_compared_end_with_their_difference(runs: Path, tmp_path: Path) -> None:
    data, out = write_folder(tmp_path / "data", Blocks(4)), tmp_path / "page.html"
    flags = ["--data", f"rain=folder:{data}", "--out", str(out), "--scenes", "1"]
    assert main(["report", "--compare", str(runs / "gkd"), str(runs / "none"), *flags]) == 0
    text = Page(out.read_text()).text()
    assert "gkd minus none 0.0 0.0* 10.0 10.0" in text, "home, rain (equal segmenters), night, fog"
    assert "IoU by class: gkd minus none" in text and "green 10.0 10.0" in text and "red – 10.0" in text
    assert "none ahead of gkd: 00" in text and "gkd ahead of none: 00" in text


@pytest.mark.parametrize("form", ["qsd", "mse"])
def test_the_teacher_stands_beside_the_student_in_one_basis(
    form: str, tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    phase = write_phase(tmp_path / "1b", {"cache": [str(tiny_cache)], "teacher_norm": "layer"})
    run = write_phase(tmp_path / "head", {"backbone": str(phase)})
    width = load_segmenter(write_run(run), "cpu").module.backbone.channels[0]
    head = QsdHead(width, 48, attend=form == "qsd")
    heads.save(phase, {f"head_feature.{name}": value for name, value in head.state_dict().items()})
    data, out = write_folder(tmp_path / "data", Blocks(1)), tmp_path / "page.html"
    flags = ["--data", f"rain=folder:{data}", "--out", str(out)]
    assert main(["report", str(run), *flags, "--teacher-weights", str(tiny_teacher)]) == 0
    text = out.read_text()
    page = Page(text)
    assert "teacher's tokens" in page.text() and "teacher vit_tiny_patch16_224" in page.text(), "and its cost"
    assert ("QSD attention" if form == "qsd" else "similarity of head") in text
    maps = np.frombuffer(base64.b64decode(re.findall(r'data-maps="([^"]*)"', text)[0]), np.uint8)
    assert 'data-rows="2" data-columns="3"' in text and maps.shape == (36,)
    peaks = [float(each) for each in re.findall(r'data-peaks="([^"]*)"', text)[0].split()]
    assert len(peaks) == 6 and all(0 <= peak <= 1 for peak in peaks)
    if form == "qsd":
        sums = maps.reshape(6, 6).sum(1) / 255 * np.array(peaks)
        np.testing.assert_allclose(sums, 1, atol=0.02)


def test_of_several_teachers_one_is_shown_with_its_own_head(
    tiny_cache: Path, finer_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The first cache is of another teacher by now, so the second one's is shown."""
    digests = ["another", digest(read_spec(tiny_cache).teacher)]
    phase = write_phase(tmp_path / "1b", {"cache": [str(finer_cache), str(tiny_cache)]})
    (phase / "backbone.yaml").write_text(json.dumps({"teacher": ["a", "b"], "teacher_fingerprint": digests}))
    run = write_phase(tmp_path / "head", {"backbone": str(phase)})
    width = load_segmenter(write_run(run), "cpu").module.backbone.channels[0]
    state = {
        f"teachers.{number}.head_feature.{name}": value
        for number, dim in enumerate((24, 48))
        for name, value in QsdHead(width, dim, attend=False).state_dict().items()
    }
    heads.save(phase, state)
    unlike = [
        Conditioning("standard", *(Affine(torch.zeros(dim), torch.eye(dim)) for _ in range(2)))
        for dim in (24, 48)
    ]
    conditionings.save(unlike, phase)
    data, out = write_folder(tmp_path / "data", Blocks(1)), tmp_path / "page.html"
    flags = ["--data", f"rain=folder:{data}", "--out", str(out)]
    assert main(["report", str(run), *flags, "--teacher-weights", str(tiny_teacher)]) == 0
    text = out.read_text()
    assert "teacher vit_tiny_patch16_224" in Page(text).text()
    assert 'data-rows="2" data-columns="3"' in text, "the grid of the second teacher"


def test_a_teacher_that_cannot_be_had_is_said_and_the_page_is_made(
    tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phase = write_phase(tmp_path / "1b", {"cache": [str(tiny_cache)]})
    run = write_run(write_phase(tmp_path / "head", {"backbone": str(phase)}))
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert "shown without its teacher" in capsys.readouterr().err


def test_images_without_a_label_are_shown_and_have_no_score(runs: Path, tmp_path: Path) -> None:
    blocks, out = Blocks(2), tmp_path / "page.html"
    for sample in blocks.samples:
        sample.label[:] = 255
    data = write_folder(tmp_path / "data", blocks)
    assert main(["report", str(runs / "gkd"), "--data", f"rain=folder:{data}", "--out", str(out)]) == 0
    text = Page(out.read_text()).text()
    assert "no labelled pixel: 000" in text and "gkd: mIoU –" in text and "nan" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds no training"),
        (["1b", "--data", "night=folder:x"], "no run predicts classes"),
        (["gkd", "gkd"], "named twice"),
        ([], "no run is named"),
        (["gkd", "--compare", "gkd", "none"], "both alone and in --compare"),
        (["--compare", "gkd", "1b"], "is a stage-1 run"),
        (["gkd", "--data", "night"], "is not NAME=ADAPTER:PATH"),
        (["gkd", "--data", "night=folder:nowhere"], "nowhere"),
    ],
)
def test_mistakes_write_no_page(
    arguments: list[str], message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"nowhere", ".", "1b", "gkd", "none"}
    folders = [str(runs / each) if each in names else each for each in arguments]
    assert main(["report", *folders, "--out", str(tmp_path / "page.html")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_masks_of_a_page_show_ignored_pixels_grey() -> None:
    from gkd_scale.report.scenes import _mask

    pixels = np.asarray(_mask(np.array([[0, 255]], np.uint8), ((1, 2, 3),)))
    np.testing.assert_array_equal(pixels[0], [(1, 2, 3), (150, 150, 150)])
    assert isinstance(Image.fromarray(pixels), Image.Image)
