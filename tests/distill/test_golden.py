"""QSD against the reference implementation's vectors, and against our own for machines without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gkd_scale.distill.config import published
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.models.students import load_student
from gkd_scale.types import Features
from tests.conftest import SHARED, TINY

OURS = Path(__file__).with_name("golden.npz")
REFERENCE = sorted((SHARED / "golden").glob("*.npz"))
HEADS = {"fea": "head_feature", "mask": "head_mask", "token": "head_cls"}
GRADIENTS = {"student_patch": 0, "student_patch_masked": 1, "student_cls": 2}


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def distiller(golden: dict[str, Tensor]) -> Distiller:
    """A distiller with the golden heads; its student is not used."""
    student = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
    student.dim = golden["student_cls"].shape[1]
    loss, qsd = published()
    grid = (1, golden["teacher_patch"].shape[1])
    module = Distiller(student, TeacherSpace(golden["teacher_cls"].shape[1], grid), loss=loss, qsd=qsd)
    for short, name in HEADS.items():
        state = {
            key.removeprefix(f"head_{short}."): value
            for key, value in golden.items()
            if key.startswith(f"head_{short}.")
        }
        getattr(module, name).load_state_dict(state)
    return module


@pytest.mark.parametrize("path", [OURS, *REFERENCE], ids=lambda path: path.stem)
def test_outputs_losses_and_gradients_are_the_references(path: Path) -> None:
    golden = load(path)
    module = distiller(golden)
    patch, masked, cls = (golden[name].clone().requires_grad_() for name in GRADIENTS)
    teacher = Features(golden["teacher_cls"], golden["teacher_patch"])
    losses = module.heads[0].losses(Features(cls, patch), masked, teacher)
    losses["loss"].backward()

    close = {"atol": 1e-5, "rtol": 1e-5}
    for ours, theirs in (
        ("loss", "loss_total"),
        ("loss_feature", "loss_feature"),
        ("loss_mask", "loss_masked"),
        ("loss_cls", "loss_token"),
    ):
        torch.testing.assert_close(losses[ours], golden[theirs], **close)
    for name, tensor in zip(GRADIENTS, (patch, masked, cls), strict=True):
        torch.testing.assert_close(tensor.grad, golden[f"grad_{name}"], **close)
    for short, name in HEADS.items():
        for key, parameter in getattr(module, name).named_parameters():
            torch.testing.assert_close(parameter.grad, golden[f"grad_head_{short}.{key}"], **close)
    outputs = {
        "out_feature": module.head_feature(patch, teacher.patches),
        "out_masked": module.head_mask(masked, teacher.patches),
        "out_cls": module.head_cls(cls[:, None], teacher.cls[:, None]),
    }
    for name, value in outputs.items():
        torch.testing.assert_close(value, golden[name], **close)


def test_the_values_are_the_students() -> None:
    """A teacher that answers everything cannot make the loss zero: its tokens are keys only."""
    torch.manual_seed(0)
    head = QsdHead(8, 12)
    student, teacher = torch.randn(2, 5, 8), torch.randn(2, 5, 12)
    with torch.no_grad():
        one, two = head(student, teacher), head(student, teacher + 100 * torch.randn(2, 5, 12))
        values = head.proj_v(student)
    for out in (one, two):
        assert float(out.amax()) <= float(values.amax()) + 1e-5
        assert float(out.amin()) >= float(values.amin()) - 1e-5


def test_variants_change_scale_and_start() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 8), torch.randn(2, 5, 16)
    zero = QsdHead(8, 16, zero_query=True)
    expected = zero.proj_v(student).mean(1, keepdim=True).expand(2, 5, 16)
    torch.testing.assert_close(zero(student, teacher), expected)
    plain, other = QsdHead(8, 16), QsdHead(8, 16, scaled=True)
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other(student, teacher * 4), plain(student, teacher))
