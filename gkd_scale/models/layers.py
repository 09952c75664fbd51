"""What timm knows of a network's layers: their depth, what should not decay, checkpointed activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.errors import ModelError


def lr_scales(net: nn.Module, decay: float) -> dict[str, float]:
    """``{parameter: decay^distance}`` with a layer's distance from the last, layers as timm groups them.

    As timm's ``param_groups_layer_decay``: the layer nearest the output has 1, the stem the least.
    Empty for a decay of 1. ModelError where timm does not know the network's layers.
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


def compile_features(net: nn.Module) -> None:
    """Compile ``net.forward_features`` in place; parameters keep their names."""
    whole: Any = net
    whole.forward_features = torch.compile(whole.forward_features)


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers in ``module``, of any dimension."""
    return [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def kept_statistics(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """``norms`` leave their running statistics alone while the block lasts; a pass has those of its batch."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def share_statistics(
    norms: Sequence[nn.modules.batchnorm._BatchNorm], mean: Callable[[Tensor], Tensor]
) -> None:
    """Replace the running statistics of those ``norms`` that are in train mode by their ``mean`` over ranks.

    The mean of the ranks' variances leaves out how their means differ: a micro batch a rank is not as good
    as all of them together. Collective.
    """
    found = [
        each
        for norm in norms
        if norm.training and norm.track_running_stats
        for each in (norm.running_mean, norm.running_var)
        if each is not None
    ]
    if not found:
        return
    shared = mean(torch.cat([each.float().flatten() for each in found]))
    for each, part in zip(found, shared.split([each.numel() for each in found]), strict=True):
        each.copy_(part.view_as(each))
