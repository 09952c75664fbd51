"""What timm knows of layers."""

from __future__ import annotations

import pytest
import timm
from timm.optim import param_groups_layer_decay
from torch import nn

from gkd_scale.errors import ModelError
from gkd_scale.models import layers
from tests.conftest import TINY


def build(name: str) -> nn.Module:
    args = TINY if name.startswith("vit") else {}
    return timm.create_model(name, num_classes=0, **args)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050", "resnet18"])
def test_scales_are_those_of_timm(name: str) -> None:
    net = build(name)
    scales = layers.lr_scales(net, 0.7)
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    theirs = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(net, layer_decay=0.7)
        for parameter in group["params"]
    }
    assert scales == pytest.approx(theirs)
    assert layers.lr_scales(net, 1.0) == {}


def test_what_the_network_exempts_has_no_decay() -> None:
    assert {"pos_embed", "cls_token"} <= layers.no_decay(build("vit_tiny_patch16_224"))
    assert layers.no_decay(nn.Linear(2, 2)) == set()


def test_what_timm_cannot_do_is_refused() -> None:
    with pytest.raises(ModelError, match="knows no layers of Linear"):
        layers.lr_scales(nn.Linear(2, 2), 0.7)
    with pytest.raises(ModelError, match="cannot checkpoint the activations of mine"):
        layers.checkpoint_activations(nn.Linear(2, 2), "mine")
