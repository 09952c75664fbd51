"""Whole tensors from sharded parameters, and back.

Under ZeRO-3 a parameter holds only this rank's part (``ds_tensor``, flat, padded to a multiple of the
world size). These helpers hide that: elsewhere a parameter is a name and a full tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_sharded(parameter: Any) -> bool:
    """Whether ZeRO-3 partitions this parameter."""
    return hasattr(parameter, "ds_tensor")


def local(parameter: Any) -> Tensor:
    """The values that this rank holds: the part under ZeRO-3, else the whole parameter."""
    return parameter.ds_tensor if is_sharded(parameter) else parameter.data


def full_shape(parameter: Any) -> torch.Size:
    """The shape of the whole parameter."""
    return torch.Size(parameter.ds_shape) if is_sharded(parameter) else parameter.shape


def gather(parameter: Any, part: Tensor) -> Tensor:
    """The whole tensor of which ``part`` is this rank's share, shaped as :func:`local`. Collective."""
    if not is_sharded(parameter):
        return part
    flat = part.detach().flatten().contiguous()
    world = dist.get_world_size()
    whole = flat.new_empty(world * flat.numel())
    dist.all_gather_into_tensor(whole, flat)
    return whole[: parameter.ds_numel].view(full_shape(parameter))


def scatter(parameter: Any, whole: Tensor) -> Tensor:
    """This rank's share of ``whole``, padded with zeros and shaped as :func:`local`."""
    if not is_sharded(parameter):
        return whole
    size = parameter.ds_tensor.numel()
    flat = whole.flatten()
    start = min(dist.get_rank() * size, flat.numel())
    part = flat[start : start + size]
    return torch.cat([part, part.new_zeros(size - part.numel())]).view(parameter.ds_tensor.shape)


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """``module.state_dict()`` on the CPU with whole parameters. Collective under ZeRO-3."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state = {}
    for name, value in module.state_dict(keep_vars=True).items():
        parameter = parameters.get(name)
        whole = gather(parameter, local(parameter)) if parameter is not None else value
        state[name] = whole.detach().cpu().clone()
    return state
