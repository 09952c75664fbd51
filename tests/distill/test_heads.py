"""The second phase goes on with the heads of the first, where they fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gkd_scale.distill import heads
from gkd_scale.distill.config import QsdConfig
from gkd_scale.distill.distiller import Distiller
from gkd_scale.models import backbone
from gkd_scale.models.students import load_student
from tests.conftest import TINY


def distiller(seed: int, dim: int = 20, **kwargs: object) -> Distiller:
    torch.manual_seed(seed)
    student = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
    return Distiller(student, dim, (2, 3), **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    trained = distiller(1)
    net, rest = heads.split(trained.state_dict())
    heads.save(tmp_path, rest)
    backbone.export(tmp_path, trained.student.spec, net, teacher="large")
    return tmp_path


def test_heads_and_mask_token_come_back_and_the_backbone_is_left_alone(run: Path) -> None:
    first, second = distiller(1), distiller(2)
    net, _ = heads.split({name: value.clone() for name, value in second.state_dict().items()})
    assert heads.resume(second, run, "large")
    net_after, rest_after = heads.split(second.state_dict())
    _, rest_wanted = heads.split(first.state_dict())
    assert set(rest_after) == set(rest_wanted) and any("token" in name for name in rest_after)
    assert all(torch.equal(rest_after[name], value) for name, value in rest_wanted.items())
    assert all(torch.equal(net_after[name], value) for name, value in net.items())


def test_heads_of_another_teacher_width_or_form_are_not_taken(run: Path) -> None:
    assert not heads.resume(distiller(2), run, "another")
    assert not heads.resume(distiller(2, dim=24), run, "large")
    assert not heads.resume(distiller(2, qsd=QsdConfig(form="mse")), run, "large")


def test_after_an_mse_phase_the_queries_start_as_the_values(tmp_path: Path) -> None:
    trained, second = distiller(1, qsd=QsdConfig(form="mse")), distiller(2)
    net, rest = heads.split(trained.state_dict())
    heads.save(tmp_path, rest)
    backbone.export(tmp_path, trained.student.spec, net, teacher="large")
    assert heads.resume(second, tmp_path, "large")
    for head, wanted in (
        (second.head_feature, trained.head_feature),
        (second.head_cls, trained.head_cls),
    ):
        assert torch.equal(head.proj_v[1].weight, wanted.proj_v[1].weight)
        assert torch.equal(head.proj_q[1].weight, wanted.proj_v[1].weight)


def test_a_weights_file_or_nothing_has_no_heads(run: Path) -> None:
    assert not heads.resume(distiller(2), None, "large")
    assert not heads.resume(distiller(2), run / backbone.WEIGHTS_FILE, "large")
    assert not heads.resume(distiller(2), "pretrained", "large")
