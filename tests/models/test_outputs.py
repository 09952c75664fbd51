"""The outputs of a backbone: the maps are those of Backbone.forward, the rest comes from the same pass."""

from __future__ import annotations

import pytest
import torch

from gkd_scale.models.backbone import Backbone, load_backbone
from gkd_scale.models.families import as_input, split_tokens
from gkd_scale.models.outputs import backbone_outputs
from tests.conftest import TINY

PIXELS = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    return load_backbone(None, name, dict(TINY) if name.startswith("vit") else {}).eval()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet"])
def test_maps_are_those_of_the_backbone(name: str) -> None:
    net = backbone(name)
    outputs = backbone_outputs(net, PIXELS, (1, 0))
    for mine, theirs in zip(outputs.maps, net(PIXELS), strict=True):
        assert torch.equal(mine, theirs)
    pixels = as_input(net.net, net.normalize(PIXELS))
    own = net.net.forward_intermediates(pixels, indices=[0, 1], intermediates_only=True)
    assert torch.equal(outputs.levels[0], own[1]) and torch.equal(outputs.levels[1], own[0])
    assert outputs.features.patches.shape[1] == outputs.grid[0] * outputs.grid[1]


def test_features_are_the_normalised_tokens_of_the_network() -> None:
    net = backbone("vit_tiny_patch16_224")
    outputs = backbone_outputs(net, PIXELS)
    expected = split_tokens(net.net, net.net.forward_features(net.normalize(PIXELS)))
    torch.testing.assert_close(outputs.features.cls, expected.cls)
    torch.testing.assert_close(outputs.features.patches, expected.patches)
    assert outputs.grid == (2, 3)


def test_changed_pixels_are_what_the_network_sees() -> None:
    net = backbone("test_resnet")
    black = backbone_outputs(net, PIXELS, change=torch.zeros_like)
    torch.testing.assert_close(black.features.cls[0], black.features.cls[1])
