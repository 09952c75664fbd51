"""Where DeepSpeed keeps a parameter, its fp32 master and its moments: the only module that knows.

Under ZeRO-3 a parameter holds only this rank's part (``ds_tensor``: flat, padded to a multiple of the world
size). Under ZeRO-1, ZeRO-2 and bf16 each parameter is whole, and ``_hp_mapping`` says which part of the flat
fp32 tensors belongs to it. Without ZeRO the optimizer is PyTorch's own. The functions here hide that:
elsewhere a parameter is a name and a whole tensor.

DeepSpeed has no public interface for some of it. ``tests/engine/test_zero.py`` touches each private name.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gkd_scale.engine.optimizers.layout import ParameterPart, Shards, Whole

READ = (">=0.19.8", "<0.20")
"""The versions of DeepSpeed whose source this module was written against."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments, as PyTorch names them."""

OWN_MOMENTS = "gkd_scale_moments"
"""Attribute of a parameter whose optimizer keeps other moments than :data:`MOMENTS`: their names."""

AVERAGE = "gkd_scale_average"
"""Attribute of a parameter while :meth:`Ema.apply` lasts: this rank's part of its fp32 average."""

_FLAT = {
    "fp32_partitioned_groups_flat": "fp16_groups",  # ZeRO-3
    "single_partition_of_fp32_groups": "bit16_groups",  # ZeRO-1 and ZeRO-2
    "fp32_groups_flat_partition": "bf16_groups",  # bf16 without offload
}
"""The flat tensors that the optimizer steps on, and the parameters of each."""


# ----------------------------------------------------------------------------- parts and whole tensors


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
    """The whole tensor of which ``part`` is this rank's share, shaped as :func:`local`. Collective.

    It is on the parameter's device. With ``offload_param`` the part is on the CPU, and NCCL takes no tensor
    of the CPU.
    """
    if not is_sharded(parameter):
        return part
    flat = part.detach().flatten().to(parameter.device).contiguous()
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
    """``module.state_dict()`` on the CPU, each parameter by :func:`exact`. Collective under ZeRO."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state = {}
    for name, value in module.state_dict(keep_vars=True).items():
        whole = exact(parameters[name]) if name in parameters else value
        state[name] = whole.detach().cpu().clone()
    return state


def exact(parameter: Any) -> Tensor:
    """The whole parameter as exactly as the run has it. Collective under ZeRO.

    That is the fp32 average while :meth:`Ema.apply` lasts; else, if the parameter is trained in half
    precision, its fp32 master; else the parameter.
    """
    average = getattr(parameter, AVERAGE, None)
    if average is not None:
        return gather(parameter, average)
    if parameter.requires_grad and local(parameter).dtype != torch.float32:
        return master(parameter)
    return gather(parameter, local(parameter))


# ------------------------------------------------------------------------ masters, moments, loss scale


def master(parameter: Any) -> Tensor:
    """The whole parameter in fp32, as the optimizer has it. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(parameter)
    return parameter.data if whole is None else whole


def moments(parameter: Any) -> tuple[str, ...]:
    """The names of the moments that the optimizer keeps of ``parameter``."""
    return getattr(parameter, OWN_MOMENTS, MOMENTS)


def moment(engine: Any, parameter: Any, key: str) -> Tensor:
    """The whole moment ``key`` of ``parameter``. Collective; call :func:`link` first."""
    from deepspeed.utils import safe_get_full_optimizer_state

    whole = safe_get_full_optimizer_state(parameter, key)
    if whole is None:  # no ZeRO: the optimizer is PyTorch's own and has no state of unused parameters
        whole = engine.optimizer.state.get(parameter, {}).get(key)
    return torch.zeros(full_shape(parameter)) if whole is None else whole


def link(engine: Any) -> None:
    """Let ZeRO-1 and ZeRO-2 know each parameter's part of the flat moments.

    DeepSpeed does so after the first group has stepped, when the other groups have no moments yet.
    """
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def prepare(engine: Any, step: int) -> None:
    """Give the optimizer moments of zero for all that it steps on, as after ``step`` steps of Adam."""
    for flat, parameters in _flats(engine):
        _adam(engine).state[flat] = _zeros(engine, flat, moments(parameters[0]), step)
    link(engine)


def layouts(engine: Any) -> dict[Tensor, Whole]:
    """What each flat tensor that the optimizer steps on holds; empty without ZeRO."""
    return {
        flat: Shards(
            [full_shape(p) for p in parameters],
            [part for index, p in enumerate(parameters) for part in _parts(engine, p, index)],
            parameters[0].device,
        )
        for flat, parameters in _flats(engine)
    }


def _parts(engine: Any, parameter: Any, index: int) -> list[ParameterPart]:
    """What this rank's flat tensor holds of a parameter: one part, or none."""
    if is_sharded(parameter):
        _, offset, size = engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)]
        start = dist.get_rank() * size
        length = min(size, parameter.ds_numel - start)  # the rest is padding
    elif parameter._hp_mapping is None:
        return []
    else:
        low, high = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
        start, offset, length = low.start, high.start, low.numel
    return [ParameterPart(index, start, offset, length)] if length > 0 else []


def _flats(engine: Any) -> list[tuple[Tensor, list[Any]]]:
    """The flat tensors that the optimizer steps on, each with its parameters; none without ZeRO."""
    optimizer = engine.optimizer
    for flat, group in _FLAT.items():
        if hasattr(optimizer, flat):
            return list(zip(getattr(optimizer, flat), getattr(optimizer, group), strict=True))
    return []


def restore(engine: Any, parameter: Any, values: Tensor, moments: dict[str, Tensor], step: int) -> None:
    """Put a parameter's whole ``values`` and ``moments`` where this rank keeps its part of them.

    Call :func:`prepare` first. ``step`` is how many steps Adam has made.
    """
    from deepspeed import utils

    local(parameter).copy_(scatter(parameter, values))
    if is_sharded(parameter):  # ZeRO-3
        utils.safe_set_local_fp32_param(parameter, scatter(parameter, values))
        for key, whole in moments.items():
            utils.safe_set_local_optimizer_state(parameter, scatter(parameter, whole), key)
    elif hasattr(parameter, "_hp_mapping"):  # ZeRO-1, ZeRO-2, bf16
        utils.safe_set_full_fp32_param(parameter, values)
        for key, whole in moments.items():
            utils.safe_set_full_optimizer_state(parameter, whole, key)
    else:
        state = _adam(engine).state[parameter] = _zeros(engine, parameter, tuple(moments), step)
        for key, whole in moments.items():
            state[key].copy_(whole)


def optimizer_step(engine: Any) -> int:
    """How many steps Adam has made: fewer than the training if fp16 skipped an overflow."""
    return max((int(state["step"]) for state in _adam(engine).state.values() if "step" in state), default=0)


def loss_scale(engine: Any) -> dict[str, int | float | bool]:
    """The state of fp16's dynamic loss scale by name; empty without one."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return {}
    return {key: value for key, value in vars(scaler).items() if isinstance(value, (int, float))}


def set_loss_scale(engine: Any, state: dict[str, int | float | bool]) -> None:
    """Go on from what :func:`loss_scale` returned."""
    if state:
        vars(engine.optimizer.loss_scaler).update(state)


def _adam(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that we gave to DeepSpeed."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _zeros(engine: Any, like: Tensor, names: tuple[str, ...], step: int) -> dict[str, Tensor]:
    """The state of ``like`` after ``step`` steps of moments that stayed zero."""
    device = like.device if _adam(engine).defaults.get("fused") else None
    zeros = {key: torch.zeros_like(like, memory_format=torch.preserve_format) for key in names}
    return {"step": torch.tensor(float(step), device=device), **zeros}


# --------------------------------------------------------------------------------------- DeepSpeed itself


def without_shared_memory_kernel() -> None:
    """Keep DeepSpeed from compiling its CPU kernel for collectives in shared memory.

    It takes two minutes to compile and leaks 66 MiB of /dev/shm a rank; gloo alone gives the same results.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
