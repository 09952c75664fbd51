"""``gkd-scale export``: the exports in their own libraries, what lies beside them, and mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gkd_scale.cli import main
from gkd_scale.segment.datasets import scenes

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


def compare(run: Path, out: Path, form: str, head: bool, size: tuple[int, int], scratch: Path) -> float:
    """The largest difference between a run and its export in a plain process; asserts that they agree."""
    images = pictures(size)
    found = plain(out, form, (images / 255).astype(np.float32), scratch)
    wanted = reference(run, images, head)
    assert set(found) == set(wanted)
    largest = max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)
    assert largest <= 1e-4
    if head:
        assert (found["logits"].argmax(1) == wanted["logits"].argmax(1)).mean() >= 0.999
        assert len(np.unique(wanted["logits"].argmax(1))) > 1
    return largest


def matrix() -> list[object]:
    """Every student as a backbone in every format, and every student with every head where a head can be."""
    fast = {("vit", None, form) for form in FORMATS} | {
        ("resnet", "linear", "onnx"),
        ("vit", "fpn", "torch-export"),
    }
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
    run, out = make_run(tmp_path / "run", student, head, (64, 96)), tmp_path / "out"
    assert call(run, "--format", form, "--out", out, *["--with-head"] * (head is not None)) == 0
    said = capsys.readouterr().out
    assert "largest difference" in said and "is complete" in said
    largest = compare(run, out, form, head is not None, (64, 96), tmp_path)
    print(f"{student} {head} {form}: {largest:.2g}")
    if "takes any batch, one size" not in said.replace("\n", " ") and form != "transformers":
        compare(run, out, form, head is not None, (96, 64), tmp_path)
