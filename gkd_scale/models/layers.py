"""What timm knows of the layers of a network: depth, weight decay, checkpointed activations."""

from __future__ import annotations

from torch import nn

from gkd_scale.errors import ModelError


def lr_scales(net: nn.Module, decay: float) -> dict[str, float]:
    """``{parameter: decay^distance}`` with a layer's distance from the last, layers as timm groups them.

    As timm's ``param_groups_layer_decay``: the layer nearest the output has 1, the stem the least.
    Empty for a decay of 1. ModelError if timm does not know the network's layers.
    """
    if decay == 1:
        return {}
    from timm.models import group_parameters

    if not hasattr(net, "group_matcher"):
        raise ModelError(f"timm knows no layers of {type(net).__name__}", "leave --layer-decay out")
    layer_of: dict[str, int] = group_parameters(net, net.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(layer_of.values())
    return {name: decay ** (last - layer) for name, layer in layer_of.items()}


def no_decay(net: nn.Module) -> set[str]:
    """Names of the parameters that the network itself exempts from weight decay."""
    return set(net.no_weight_decay()) if hasattr(net, "no_weight_decay") else set()  # type: ignore[operator]


def checkpoint_activations(net: nn.Module, name: str) -> None:
    """Keep few activations for the backward pass and compute the others again; ModelError if timm cannot."""
    try:
        net.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError):
        raise ModelError(
            f"timm cannot checkpoint the activations of {name}", "leave --grad-checkpointing out"
        ) from None
