"""Backbones: a pyramid of four maps, and two files that carry them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gkd_scale.errors import ModelError
from gkd_scale.models.backbone import load_backbone
from tests.conftest import TINY


def test_a_transformer_gives_strides_4_to_32() -> None:
    net = load_backbone(None, "vit_tiny_patch16_224", dict(TINY)).eval()
    maps = net(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    assert [tuple(m.shape) for m in maps] == [(2, 48, 16, 24), (2, 48, 8, 12), (2, 48, 4, 6), (2, 48, 2, 3)]
    assert net.channels == (48,) * 4
    assert net.stride == 16


def test_blocks_are_those_of_the_paper() -> None:
    assert load_backbone(None, "vit_tiny_patch16_224", {"embed_dim": 48, "depth": 12}).indices == [
        3,
        5,
        7,
        11,
    ]
    assert load_backbone(None, "vit_tiny_patch16_224", {"embed_dim": 48, "depth": 24}).indices == [
        7,
        11,
        15,
        23,
    ]


def test_a_convolutional_network_gives_its_own_levels() -> None:
    net = load_backbone(None, "mobilenetv3_small_050").eval()
    maps = net(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    assert [m.shape[-2:] for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [m.shape[1] for m in maps] == list(net.channels)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = load_backbone(None, "vit_tiny_patch16_224", dict(TINY)).eval()
    net.save(tmp_path, note="a fact")
    again = load_backbone(tmp_path, None).eval()
    x = torch.randint(0, 256, (1, 3, 48, 80), dtype=torch.uint8)
    for one, other in zip(net(x), again(x), strict=True):
        assert torch.equal(one, other)
    assert "a fact" in (tmp_path / "backbone.yaml").read_text()


def test_a_file_needs_a_name(tmp_path: Path) -> None:
    load_backbone(None, "vit_tiny_patch16_224", dict(TINY)).save(tmp_path)
    with pytest.raises(ModelError, match="--student NAME"):
        load_backbone(tmp_path / "backbone.safetensors", None)


def test_the_last_blocks_of_a_transformer_have_its_norm() -> None:
    backbone = load_backbone(None, "vit_tiny_patch16_224", {**TINY, "depth": 3})
    names = backbone.last_blocks(2)
    assert set(names) == {
        name
        for name, _ in backbone.net.named_parameters()
        if name.startswith(("blocks.1.", "blocks.2.", "norm."))
    }
    assert backbone.last_blocks(0) == []
    with pytest.raises(ModelError, match="has 3 blocks"):
        backbone.last_blocks(3)


def test_the_last_blocks_of_a_convolutional_network_are_its_last_residual_blocks() -> None:
    backbone = load_backbone(None, "resnet10t")
    assert {name.split(".")[0] for name in backbone.last_blocks(2)} == {"layer3", "layer4"}
