"""Keeps some passes from changing BatchNorm's running statistics, and makes ranks share these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers in ``module``, of any dimension."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def kept_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Passes inside the block normalise with their batch's statistics and leave the running ones alone."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def share_statistics(norms: Sequence[_BatchNorm], mean: Callable[[Tensor], Tensor]) -> None:
    """Replace the running statistics of those ``norms`` that are in train mode by their ``mean`` over ranks.

    The mean of the ranks' variances leaves out how far their means differ, so it is less exact than the
    variance over all ranks' images. Collective.
    """
    statistics = [
        value
        for norm in norms
        if norm.training and norm.track_running_stats
        for value in (norm.running_mean, norm.running_var)
        if value is not None
    ]
    if not statistics:
        return
    means = mean(torch.cat([value.float().flatten() for value in statistics]))
    for value, part in zip(statistics, means.split([value.numel() for value in statistics]), strict=True):
        value.copy_(part.view_as(value))
