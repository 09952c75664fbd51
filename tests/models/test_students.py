"""Students: features on their grid, masking that is felt, weights that plain timm takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from gkd_scale.errors import ModelError
from gkd_scale.models import backbone
from gkd_scale.models.students import load_student
from tests.conftest import TINY

FAMILIES = {
    "vit_tiny_patch16_224": dict(TINY),
    "eva02_tiny_patch14_224": {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "mobilenetv3_small_050": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_features_and_feels_the_mask(name: str) -> None:
    torch.manual_seed(0)
    student = load_student(name, (64, 96), (4, 6), args=FAMILIES[name]).train(name.startswith(("vit", "eva")))
    student.eval()
    x = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    cls, patches = student(x)
    assert cls.shape == (2, student.dim)
    assert patches.shape == (2, student.grid[0] * student.grid[1], student.dim)
    mask = torch.zeros(2, student.mask_tokens, dtype=torch.bool)
    mask[0, ::2] = True
    masked = student(x, mask).patches
    assert not torch.allclose(masked[0], patches[0])
    torch.testing.assert_close(masked[1], patches[1])
    torch.testing.assert_close(student(x).patches, patches)


@pytest.mark.parametrize("name", FAMILIES)
def test_exported_weights_load_into_plain_timm(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.manual_seed(0)
    student = load_student(name, (64, 96), (4, 6), args=FAMILIES[name]).eval()
    backbone.export(tmp_path, student.spec, student.net.state_dict())
    plain = timm.create_model(name, num_classes=0, **FAMILIES[name]).eval()
    plain.load_state_dict(load_file(tmp_path / "backbone.safetensors"))
    size = plain.pretrained_cfg["input_size"][1:]
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(plain.forward_features(x), student.net.forward_features(x))


def test_a_student_starts_from_a_run_a_file_or_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
    backbone.export(tmp_path, first.spec, first.net.state_dict())
    for weights in (str(tmp_path), str(tmp_path / "backbone.safetensors")):
        again = load_student("vit_tiny_patch16_224", (64, 64), (4, 4), weights=weights, args=dict(TINY))
        assert torch.equal(again.net.blocks[0].attn.qkv.weight, first.net.blocks[0].attn.qkv.weight)
    fresh = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
    assert not torch.equal(fresh.net.blocks[0].attn.qkv.weight, first.net.blocks[0].attn.qkv.weight)


def test_a_run_of_another_student_is_refused(tmp_path: Path) -> None:
    first = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
    backbone.export(tmp_path, first.spec, first.net.state_dict())
    with pytest.raises(ModelError, match="holds vit_tiny"):
        load_student("vit_small_patch16_224", (32, 48), (2, 3), weights=str(tmp_path))
    with pytest.raises(ModelError, match="no exported backbone"):
        load_student("vit_tiny_patch16_224", (32, 48), (2, 3), weights=str(tmp_path.parent))


def test_a_grid_that_cannot_be_is_refused() -> None:
    with pytest.raises(ModelError, match="patches"):
        load_student("vit_tiny_patch16_224", (40, 48), (2, 3), args=dict(TINY))
