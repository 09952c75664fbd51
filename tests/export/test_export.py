"""``gkd-scale export``: the exports in their own libraries, what lies beside them, and mistakes."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml

from gkd_scale import config, files, scenes
from gkd_scale.cli import main
from gkd_scale.export import verify
from gkd_scale.export.config import ExportConfig
from gkd_scale.export.subject import Shapes, open_subject
from tests.cases import tiny
from tests.conftest import write_images
from tests.report.test_report import write_phase
from tests.segment.support import Blocks, write_folder

from .support import make_run, plain, reference

STUDENTS = ("vit", "convnext", "resnet", "swin")
HEADS = ("linear", "fpn", "mask2former")
FORMATS = ("timm", "transformers", "onnx", "torch-export")


def call(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def pictures(size: tuple[int, int], count: int = 2) -> np.ndarray:
    """Scenes that no export was checked on, (B, 3, H, W) uint8."""
    return np.stack([scenes.render("unseen_night", 7 + index, size)[0] for index in range(count)]).transpose(
        0, 3, 1, 2
    )


def compare(
    run: Path, out: Path, form: str, head: bool, sizes: Sequence[tuple[int, int]], scratch: Path
) -> float:
    """The largest difference between a run and its export in a plain process; asserts that they agree."""
    batches = [pictures(size) for size in sizes]
    outputs = plain(out, form, [(images / 255).astype(np.float32) for images in batches], scratch)
    largest = 0.0
    for images, output in zip(batches, outputs, strict=True):
        expected = reference(run, images, head)
        assert set(output) == set(expected)
        largest = max(largest, *(float(np.abs(output[name] - expected[name]).max()) for name in expected))
        if head:
            assert (output["logits"].argmax(1) == expected["logits"].argmax(1)).mean() >= 0.999
            assert len(np.unique(expected["logits"].argmax(1))) > 1
    assert largest <= 1e-4
    return largest


def matrix() -> list[object]:
    """Every student as a backbone in every format, and every student with every head where a head can be."""
    fast = {*(("vit", None, form) for form in FORMATS), ("resnet", "linear", "onnx")}
    cells = [(student, None, form) for student in STUDENTS for form in FORMATS]
    cells += [(s, head, form) for s in STUDENTS for head in HEADS for form in ("onnx", "torch-export")]
    return [
        pytest.param(*each, id="-".join(map(str, each)), marks=() if each in fast else pytest.mark.slow)
        for each in cells
    ]


@pytest.mark.parametrize(("student", "head", "form"), matrix())
def test_an_export_in_its_own_library_equals_the_run(
    student: str, head: str | None, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make_run(tmp_path / f"run-{head}", student, head, (64, 96)), tmp_path / "out"
    assert call(run, "--format", form, "--out", out, *["--with-head"] * (head is not None)) == 0
    output = capsys.readouterr().out
    assert "largest difference" in output and "is complete" in output
    one_size = "are taken" in output or form == "transformers"  # whose processor resizes
    sizes = [(64, 96)] if one_size else [(64, 96), (96, 64)]
    largest = compare(run, out, form, head is not None, sizes, tmp_path)
    print(f"{student} {head} {form}: {largest:.2g}")


# ------------------------------------------------------------------------- what else there is to it


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "1b", size=(64, 96))


@pytest.fixture(scope="module")
def stage2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "head", "resnet", "linear", (64, 96))


def test_the_card_and_the_facts(stage1: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "a run", tmp_path / "out"
    shutil.copytree(stage1, run)
    (tmp_path / "1a").mkdir()
    write_phase(run, {"cache": ["caches/gone"], "student_weights": str(tmp_path / "1a")})
    images = write_images(tmp_path / "images", 3)
    flags = ("--format", "timm", "--images", images, "--license", "apache-2.0")
    assert call(run, "--out", out, *flags) == 0
    text = (out / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "apache-2.0" and header["library_name"] == "timm"
    assert "caches/gone" in text and "--config 'training/1-a run.yaml'" in text
    assert f"3 images of {images}" in text
    facts = json.loads((out / "export.json").read_text())
    for name, digest in facts["sha256"].items():
        assert files.sha256_file(out / name) == digest and digest in text
    assert set(facts["sha256"]) == {"config.json", "model.safetensors", "training/1-a run.yaml"}
    command = shlex.split(next(line for line in text.splitlines() if line.startswith("gkd-scale export")))
    assert config.parse(ExportConfig, command[2:], prog="export", description="").images == str(images)


def test_int8_says_what_it_costs(stage2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_folder(tmp_path / "data", Blocks(3, sizes=((64, 96),))), tmp_path / "out"
    flags = ("--format", "onnx", "--with-head", "--dtype", "int8", "--data", f"day=folder:{data}")
    assert call(stage2, "--out", out, *flags) == 0
    output = " ".join(capsys.readouterr().out.split())
    (cost,) = json.loads((out / "export.json").read_text())["miou"]
    assert f"day: mIoU {cost['run']:.2f} in PyTorch, {cost['export']:.2f} exported" in output
    assert cost["images"] == 3 and "this export" in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_smaller_numbers_are_close(student: str, head: str, dtype: str, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", student, head, (64, 96)), tmp_path / "out"
    assert call(run, "--format", "onnx", "--with-head", "--out", out, "--dtype", dtype) == 0
    (difference,) = json.loads((out / "export.json").read_text())["differences"]
    largest, value, same = (difference[key] for key in ("largest", "value", "same"))
    print(f"{student} {head} {dtype}: {largest:.2g} of {value:.2g}, {same:.4f} the same")
    assert difference["same"] > (0.99 if dtype == "fp16" else 0.8)


def test_the_images_are_those_of_the_training(
    stage2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", write_folder(tmp_path / "data", Blocks(3))
    shutil.copytree(stage2, run)
    write_phase(run, {"backbone": None, "train": [f"folder:{data}"]})
    assert call(run, "--out", tmp_path / "out", "--format", "timm") == 0
    assert f"3 images of folder:{data}" in " ".join(capsys.readouterr().out.split())
    write_phase(run, {"cache": [str(tiny.cache())]})
    assert call(run, "--out", tmp_path / "other", "--format", "timm") == 0
    assert f"4 images of {tiny.cache()}" in " ".join(capsys.readouterr().out.split())


def test_an_export_that_differs_is_not_kept(
    stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    assert call(stage1, "--out", tmp_path / "deep/out", "--format", "timm") == 1
    assert "differs from the run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_counts_as_different(stage2: Path) -> None:
    subject = open_subject(stage2, head=True)
    images = torch.from_numpy(pictures((64, 96)))

    def differences(change: Callable[[torch.Tensor], torch.Tensor]) -> list[verify.Difference]:
        def model(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": change(subject.reference((255 * pixels).round().byte())["logits"])}

        return verify.differences(subject, model, images, Shapes.ANY, exact=True)

    (same,) = differences(lambda logits: logits)
    assert same.largest == 0 and same.same == 1
    with pytest.raises(verify.Differs, match=r"the same class in 0\.000 % of pixels"):
        differences(lambda logits: logits.roll(1, 1))
    with pytest.raises(verify.Differs, match=r"largest difference 0\.1"):
        differences(lambda logits: logits + 0.1)
    with pytest.raises(verify.Differs, match="not finite"):
        differences(lambda logits: logits / 0)
    with pytest.raises(verify.Differs, match="has the shape"):
        differences(lambda logits: logits[..., :-1])


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format", "onxx"), "did you mean 'onnx'"),
        (("--format", "timm", "--with-head"), "use --format onnx or torch-export"),
        (("--format", "transformers", "--with-head"), "use --format onnx or torch-export"),
        (("--format", "torch-export", "--dtype", "int8"), "use --format onnx"),
        (("--format", "onnx", "--dtype", "int4"), "invalid choice: 'int4'"),
        (("--format", "onnx", "--with-head"), "is a stage-1 run"),
        (("--format", "onnx", "--data", "x=folder:y"), "add --with-head"),
        (("--format", "timm", "--image-size", "65x96"), "use --image-size 64x96"),
        (("--format", "timm", "--images", "nowhere"), "nowhere"),
        (("--format", "timm", "--push-to-hub", "a/b/c"), "USER/NAME"),
        ((), "give --format"),
    ],
)
def test_mistakes(
    flags: tuple[str, ...], message: str, stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(stage1, "--out", tmp_path / "new/out", *flags) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert error.count("error:") == 1 and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_runs_that_are_none(
    stage1: Path, stage2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(run: Path, *flags: str) -> str:
        assert call(run, "--out", tmp_path / "out", "--format", "timm", *flags) == 2
        assert not (tmp_path / "out").exists()
        error = capsys.readouterr().err
        assert error.count("error:") == 1
        return " ".join(error.split())

    assert "does not exist" in refusal(tmp_path / "moved")
    (tmp_path / "empty").mkdir()
    assert "no finished run" in refusal(tmp_path / "empty")
    for name in ("begun", "several", "broken", "headless"):
        shutil.copytree(stage2 if name == "headless" else stage1, tmp_path / name)
    (tmp_path / "begun/begun.json").write_text('{"kind": "stage1"}')
    assert "is not finished" in refusal(tmp_path / "begun")
    (tmp_path / "several/small").mkdir()
    for name in ("backbone.yaml", "backbone.safetensors"):
        (tmp_path / "several" / name).rename(tmp_path / "several/small" / name)
    assert "several/small" in refusal(tmp_path / "several")
    (tmp_path / "broken/backbone.safetensors").write_bytes(b"no tensors")
    assert "backbone.safetensors" in refusal(tmp_path / "broken")
    (tmp_path / "headless/head.safetensors").unlink()
    assert "head.safetensors" in refusal(tmp_path / "headless")


def test_a_folder_that_exists_is_left_alone(
    stage1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        assert call(stage1, "--out", tmp_path / name, "--format", "timm") == 2
        assert "exists already" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "file"}


def test_a_missing_library(
    stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert call(stage1, "--out", tmp_path / "out", "--format", "onnx") == 2
    assert "gkd-scale[export]" in capsys.readouterr().err


def test_the_hub(
    stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    flags = ("--out", tmp_path / "out", "--format", "timm", "--push-to-hub", "user/student")
    assert call(stage1, *flags) == 2
    assert "no Hugging Face token" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert call(stage1, *flags) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda _self: {})
    assert call(stage1, *flags) == 2
    assert "hf upload user/student" in capsys.readouterr().err
    assert (tmp_path / "out/README.md").is_file()
