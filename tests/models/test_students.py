"""Students: features on their grid, masking that is felt, weights that plain timm takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gkd_scale.errors import ModelError
from gkd_scale.models import backbone
from gkd_scale.models.students import load_student
from tests.conftest import TINY


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


def test_a_run_goes_on_with_another_patch_size(tmp_path: Path) -> None:
    args = {key: value for key, value in TINY.items() if key != "patch_size"}
    torch.manual_seed(0)
    first = load_student("vit_tiny_patch16_224", (56, 84), (4, 6), args={**args, "patch_size": 14})
    backbone.export(tmp_path, first.spec, first.net.state_dict())
    second = load_student(
        "vit_tiny_patch16_224", (64, 96), (4, 6), weights=str(tmp_path), args={**args, "patch_size": 16}
    )
    assert (first.grid, second.grid) == ((4, 6), (4, 6))
    assert second.net.patch_embed.proj.weight.shape[-2:] == (16, 16)


def test_positions_of_a_grid_that_is_not_square_keep_their_places(tmp_path: Path) -> None:
    """4x9 positions are as many as 6x6: only the run knows which they are."""
    first = load_student("vit_tiny_patch16_224", (64, 144), (4, 9), args={**TINY, "img_size": [64, 144]})
    with torch.no_grad():
        first.net.pos_embed[:, 1:] = torch.arange(9.0).repeat(4).view(1, 36, 1)
    backbone.export(tmp_path, first.spec, first.net.state_dict())
    args = {**TINY, "img_size": [128, 288]}
    second = load_student("vit_tiny_patch16_224", (128, 288), (8, 18), weights=str(tmp_path), args=args)
    rows = second.net.pos_embed.detach()[0, 1:, 0].view(8, 18)
    torch.testing.assert_close(rows, rows[:1].expand(8, 18), atol=1e-4, rtol=0)


def test_a_run_keeps_its_patch_size_where_none_is_given(tmp_path: Path) -> None:
    args = {key: value for key, value in TINY.items() if key != "patch_size"}
    first = load_student("vit_tiny_patch16_224", (56, 84), (4, 6), args={**args, "patch_size": 14})
    backbone.export(tmp_path, first.spec, first.net.state_dict())
    again = load_student("vit_tiny_patch16_224", (56, 84), (4, 6), weights=str(tmp_path), args=args)
    assert torch.equal(again.net.patch_embed.proj.weight, first.net.patch_embed.proj.weight)


def smooth(side: int) -> torch.Tensor:
    """An image of 4x6 patches of ``side`` pixels, the same scene at every size."""
    scene = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(scene, size=(4 * side, 6 * side), mode="bicubic")


def test_pi_resizing_keeps_embeddings_and_bicubic_scales_them(tmp_path: Path) -> None:
    """At patch 16 the same scene, larger, embeds as it did at patch 14; 1.3 times as large with bicubic."""
    args = {key: value for key, value in TINY.items() if key != "patch_size"}
    torch.manual_seed(0)
    first = load_student("vit_tiny_patch16_224", (56, 84), (4, 6), args={**args, "patch_size": 14})
    backbone.export(tmp_path, first.spec, first.net.state_dict())
    expected = first.net.patch_embed(smooth(14)).detach()
    errors = {}
    for resize in ("pi", "bicubic"):
        second = load_student(
            "vit_tiny_patch16_224",
            (64, 96),
            (4, 6),
            weights=str(tmp_path),
            args={**args, "patch_size": 16},
            resize=resize,
        )
        tokens = second.net.patch_embed(smooth(16)).detach().view_as(expected)
        errors[resize] = float((tokens - expected).norm() / expected.norm())
    assert errors["pi"] < 0.02 < 0.2 < errors["bicubic"]
