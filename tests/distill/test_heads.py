"""The second phase goes on with the heads of the first, where they fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gkd_scale.distill import heads
from gkd_scale.distill.config import LossConfig, QsdConfig, published
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.models import backbone
from gkd_scale.models.conditioning import Conditioning, fit
from gkd_scale.models.students import load_student
from gkd_scale.types import Features
from tests.conftest import TINY


def distiller(
    seed: int, conditioning: Conditioning | None = None, dim: int = 20, **kwargs: object
) -> Distiller:
    torch.manual_seed(seed)
    student = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
    space, (loss, qsd) = TeacherSpace(dim, (2, 3), conditioning or Conditioning()), published()
    return Distiller(student, space, **{"loss": loss, "qsd": qsd, **kwargs})  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    first = distiller(1)
    net, rest = first.split(first.state_dict())
    heads.save(tmp_path, rest)
    backbone.export(tmp_path, first.student.spec, net, teacher="large")
    return tmp_path


def test_heads_and_mask_token_come_back_and_the_backbone_is_left_alone(run: Path) -> None:
    first, second = distiller(1), distiller(2)
    net, _ = second.split({name: value.clone() for name, value in second.state_dict().items()})
    assert heads.resume(second, run, {"large": Conditioning()})
    net_after, rest_after = second.split(second.state_dict())
    _, rest_wanted = first.split(first.state_dict())
    assert set(rest_after) == set(rest_wanted) and any("token" in name for name in rest_after)
    assert all(torch.equal(rest_after[name], value) for name, value in rest_wanted.items())
    assert all(torch.equal(net_after[name], value) for name, value in net.items())


def test_heads_of_another_teacher_width_or_form_are_not_taken(run: Path) -> None:
    assert not heads.resume(distiller(2), run, {"another": Conditioning()})
    assert not heads.resume(distiller(2, dim=24), run, {"large": Conditioning()})
    assert not heads.resume(distiller(2, qsd=QsdConfig(form="mse")), run, {"large": Conditioning()})


@pytest.mark.parametrize(
    "change, teacher, reason",
    [
        ({}, "another", "they belong to the teacher 'large', and this run has 'another'"),
        ({"dim": 24}, "large", r"head_\w+\.proj_\w\.\d\.\w+ is \(20.*\), and \(24.*\) in this run"),
        ({"qsd": QsdConfig(form="mse")}, "large", r"this run has no head_\w+\.proj_q\.\d\.\w+"),
        ({"loss": LossConfig()}, "large", r"they have no ladder\.0\.proj_v\.\d\.\w+"),
    ],
)
def test_heads_that_do_not_fit_are_named_with_the_reason(
    run: Path, change: dict[str, object], teacher: str, reason: str
) -> None:
    lines: list[str] = []
    assert not heads.resume(distiller(2, **change), run, {teacher: Conditioning()}, lines.append)  # type: ignore[arg-type]
    (line,) = lines
    assert re.fullmatch(re.escape(f"the heads of {run} do not fit, new ones start: ") + reason, line)


def test_after_an_mse_phase_the_queries_start_as_the_values(tmp_path: Path) -> None:
    first, second = distiller(1, qsd=QsdConfig(form="mse")), distiller(2)
    net, rest = first.split(first.state_dict())
    heads.save(tmp_path, rest)
    backbone.export(tmp_path, first.student.spec, net, teacher="large")
    assert heads.resume(second, tmp_path, {"large": Conditioning()})
    for head, expected in (
        (second.head_feature, first.head_feature),
        (second.head_cls, first.head_cls),
    ):
        assert torch.equal(head.proj_v[1].weight, expected.proj_v[1].weight)
        assert torch.equal(head.proj_q[1].weight, expected.proj_v[1].weight)


def test_a_weights_file_or_nothing_has_no_heads(run: Path) -> None:
    assert not heads.resume(distiller(2), None, {"large": Conditioning()})
    assert not heads.resume(distiller(2), run / backbone.WEIGHTS_FILE, {"large": Conditioning()})
    lines: list[str] = []
    assert not heads.resume(distiller(2), "pretrained", {"large": Conditioning()}, lines.append)
    assert not lines


def conditioning_of(norm: str, seed: int) -> Conditioning:
    draw = torch.Generator().manual_seed(seed)

    def features() -> Iterator[Features]:
        matrix = torch.randn(20, 20, generator=draw)
        yield Features(
            torch.randn(200, 20, generator=draw) @ matrix + 4,
            torch.randn(200, 6, 20, generator=draw) @ matrix - 3,
        )

    return fit(features(), norm)


@pytest.mark.parametrize("old, new", [("none", "whiten"), ("standard", "whiten"), ("whiten", "phi-s")])
def test_heads_are_expressed_in_the_new_conditioning_exactly(tmp_path: Path, old: str, new: str) -> None:
    """Before and after, ψ means the same teacher token, and φ puts attention on the same keys."""
    before, after = conditioning_of(old, 1), conditioning_of(new, 2)
    first = distiller(1, before, qsd=QsdConfig(form="qsd", scale="sqrt"))
    second = distiller(2, after, qsd=QsdConfig(form="qsd", scale="sqrt"))
    net, rest = first.split(first.state_dict())
    heads.save(tmp_path, rest)
    before.save(tmp_path)
    backbone.export(tmp_path, first.student.spec, net, teacher="large")
    assert heads.resume(second, tmp_path, {"large": after})
    student, raw = (
        torch.randn(2, 6, first.student.dim),
        Features(torch.randn(2, 20), 0.1 * torch.randn(2, 6, 20)),
    )
    values = []
    for each, space in ((first, before), (second, after)):
        soft = each.head_feature(student, space(raw).patches)
        values.append(soft if space.norm == "none" else space.affine("patch").undo(soft.detach()))
    torch.testing.assert_close(values[0], values[1], atol=2e-3, rtol=2e-3)


def test_heads_do_not_pass_between_layer_and_an_affine_form(run: Path) -> None:
    Conditioning("layer").save(run)
    assert heads.resume(distiller(2), run, {"large": Conditioning("layer")})
    lines: list[str] = []
    assert not heads.resume(distiller(2), run, {"large": conditioning_of("whiten", 1)}, lines.append)
    assert lines[0].endswith("--teacher-norm was layer and is whiten, and 'layer' is not affine")
