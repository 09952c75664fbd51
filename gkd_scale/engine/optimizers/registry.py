"""Builds a job's optimizer, and its groups of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import nn

from gkd_scale.engine import zero
from gkd_scale.engine.optimizers import muon
from gkd_scale.engine.optimizers.lamb import Lamb
from gkd_scale.engine.optimizers.muon import Muon


def build(
    name: str, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], fused: bool
) -> torch.optim.Optimizer:
    """The optimizer ``name`` of :data:`gkd_scale.engine.optimizers.OPTIMIZERS`.

    ``fused``: one kernel for AdamW's step. It rounds differently.
    """
    if name == "lamb":
        return Lamb(groups, lr=lr, betas=betas)
    return {"adamw": torch.optim.AdamW, "muon": Muon}[name](groups, lr=lr, betas=betas, fused=fused or None)


def groups(
    module: nn.Module,
    *,
    weight_decay: float,
    lr_scales: Mapping[str, float],
    no_decay: Set[str],
    matrices: bool = False,
) -> list[dict[str, Any]]:
    """Groups of the parameters that are trained: with and without weight decay, for each multiple of the
    learning rate. Norms, biases, tokens, positions and what ``no_decay`` names have no weight decay.

    With ``matrices``, those that decay and have two dimensions form other groups, whose ``matrix`` is true.
    """
    parameters_by_key: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    embeddings = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Embedding)}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            token = parameter.ndim <= 1 or name.endswith(("token", "pos_embed", "level_embed"))
            plain = token or id(parameter) in embeddings or name in no_decay
            matrix = matrices and not plain and parameter.ndim == 2
            if matrix:
                setattr(parameter, zero.OWN_MOMENTS, muon.MOMENTS)
            parameters_by_key.setdefault((lr_scales.get(name, 1.0), not plain, matrix), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": scale,
            "weight_decay": weight_decay if decays else 0.0,
            "matrix": matrix,
        }
        for (scale, decays, matrix), parameters in sorted(
            parameters_by_key.items(), key=lambda item: item[0], reverse=True
        )
    ]
