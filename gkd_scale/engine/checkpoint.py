"""Checkpoints that are whole, safe, and independent of world size and ZeRO stage.

DeepSpeed's own checkpoints are one pickle a rank, tied to a world size, and leave ``latest`` naming a
half-written folder when killed. Ours is one safetensors file with whole tensors: parameters in fp32, both
Adam moments, the moving average, and buffers. Rank 0 writes it under a temporary name, fsyncs and
renames; older ones are removed only afterwards, so a kill at any moment leaves a whole one. Each rank
reads back the part it holds, so a run goes on exactly where it was, also on another number of ranks or
with another ZeRO stage.

What is random in training is a function of (seed, step), so there is no generator state to keep.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale import files
from gkd_scale.engine import weights
from gkd_scale.engine.ema import Ema
from gkd_scale.engine.run import begin_again, refuse_changed
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import DamageError, nearest

MOMENTS = ("exp_avg", "exp_avg_sq")
_NAME = re.compile(r"step-(\d{8})\.safetensors")


def path(folder: Path, step: int) -> Path:
    """The checkpoint after optimizer step number ``step``."""
    return folder / f"step-{step:08d}.safetensors"


def steps(folder: Path) -> list[int]:
    """The steps that have a whole checkpoint, ascending."""
    found = (_NAME.fullmatch(file.name) for file in folder.glob("step-*.safetensors"))
    return sorted(int(match[1]) for match in found if match)


def newest(folders: Sequence[Path]) -> int:
    """The newest step with a whole checkpoint in every folder, or 0. Removes what a killed save left."""
    for folder in folders:
        for torn in folder.glob(f"step-*{files.TEMPORARY}"):
            torn.unlink()
    return max(set.intersection(*(set(steps(folder)) for folder in folders)), default=0)


def save(
    folder: Path, step: int, engine: Any, ema: Ema | None, runtime: Runtime, identity: dict[str, Any]
) -> None:
    """Write the checkpoint of ``step``. Collective.

    A full disk raises on every rank, and leaves the older checkpoints as they were.
    """
    tensors = _collect(engine, ema, runtime)
    meta = {"step": step, "optimizer_step": _optimizer_step(engine), "identity": identity, **_scaler(engine)}

    def write() -> None:
        from safetensors.torch import save as to_bytes

        files.write_bytes(path(folder, step), to_bytes(tensors, {"gkd_scale": json.dumps(meta)}))

    runtime.on_main(write)


def prune(folder: Path, keep: int, keep_every: int | None = None) -> None:
    """Remove all checkpoints but the newest ``keep`` and those of every ``keep_every``-th step."""
    for old in steps(folder)[:-keep]:
        if keep_every is None or old % keep_every:
            path(folder, old).unlink()


def load(folder: Path, step: int, engine: Any, ema: Ema | None, identity: dict[str, Any]) -> None:
    """Restore the checkpoint of ``step``.

    Raises RunError where it belongs to a run with another ``identity``, naming the keys.
    """
    from safetensors import SafetensorError, safe_open

    file = path(folder, step)
    try:
        with safe_open(str(file), framework="pt") as reader:
            meta = json.loads(reader.metadata()["gkd_scale"])
            refuse_changed(folder.parent, meta["identity"], identity)
            _restore(engine, ema, reader, int(meta["optimizer_step"]))
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamageError(
            f"{file} cannot be read: {error}", "remove it: the run goes on from the one before"
        ) from None
    if "loss_scale" in meta:
        vars(engine.optimizer.loss_scaler).update(meta["loss_scale"])


def fork(source: Path, folder: Path, changes: dict[str, Any]) -> None:
    """Make a copy of the checkpoint file ``source`` the only one in ``folder``, for a run whose identity
    differs by ``changes``: population-based training goes on from another run with other settings.
    """
    from safetensors import safe_open
    from safetensors.torch import save as to_bytes

    with safe_open(str(source), framework="pt") as reader:
        meta = json.loads(reader.metadata()["gkd_scale"])
        tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
    meta["identity"] |= changes
    begin_again(folder.parent, meta["identity"])
    for old in steps(folder):
        path(folder, old).unlink()
    files.write_bytes(path(folder, int(meta["step"])), to_bytes(tensors, {"gkd_scale": json.dumps(meta)}))


# ------------------------------------------------------------------- DeepSpeed's shards, as names


def _trained(engine: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    persistent = module.state_dict(keep_vars=True)
    return {name: value for name, value in module.named_buffers() if name in persistent}


def _collect(engine: Any, ema: Ema | None, runtime: Runtime) -> dict[str, Tensor]:
    """Every tensor of the run's state, whole, on rank 0's CPU; empty on other ranks. Collective."""
    tensors: dict[str, Tensor] = {}
    _link(engine)

    def add(name: str, value: Tensor) -> None:
        if runtime.main:
            tensors[name] = value.detach().cpu().contiguous().clone()

    for name, parameter in _trained(engine).items():
        add(f"param/{name}", _master(parameter))
        for key in MOMENTS:
            add(f"{key}/{name}", _moment(engine, parameter, key))
    for name, value in (ema.full() if ema else {}).items():
        add(f"ema/{name}", value)
    for name, value in _buffers(engine.module).items():  # equal on all ranks, as the loop sees to
        add(f"buffer/{name}", value)
    return tensors


def _master(parameter: Any) -> Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(parameter)
    return parameter.data if whole is None else whole


def _moment(engine: Any, parameter: Any, key: str) -> Tensor:
    from deepspeed.utils import safe_get_full_optimizer_state

    whole = safe_get_full_optimizer_state(parameter, key)
    if whole is None:  # no ZeRO: the optimizer is torch's own, and knows nothing of unused parameters
        whole = engine.optimizer.state.get(parameter, {}).get(key)
    return torch.zeros(weights.full_shape(parameter)) if whole is None else whole


def _base_optimizer(engine: Any) -> torch.optim.Optimizer:
    return (
        engine.optimizer
        if isinstance(engine.optimizer, torch.optim.Optimizer)
        else engine.optimizer.optimizer
    )


def _optimizer_step(engine: Any) -> int:
    """How often Adam has stepped; less than the step where fp16 skipped an overflow."""
    return max(
        (int(state["step"]) for state in _base_optimizer(engine).state.values() if "step" in state), default=0
    )


def _scaler(engine: Any) -> dict[str, Any]:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is None or not getattr(scaler, "dynamic", False):
        return {}
    return {"loss_scale": {key: v for key, v in vars(scaler).items() if isinstance(v, (int, float))}}


def _flat_masters(engine: Any) -> list[Tensor]:
    """The flat fp32 tensors that ZeRO's inner optimizer steps on; empty without ZeRO."""
    for name in (
        "fp32_partitioned_groups_flat",
        "single_partition_of_fp32_groups",
        "fp32_groups_flat_partition",
    ):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    return []


@torch.no_grad()
def _restore(engine: Any, ema: Ema | None, reader: Any, optimizer_step: int) -> None:
    state = _base_optimizer(engine).state
    for flat in _flat_masters(engine):
        state[flat] = _fresh(flat, optimizer_step)
    _link(engine)
    trained = _trained(engine)
    stored = {key.removeprefix("param/") for key in reader.keys() if key.startswith("param/")}  # noqa: SIM118
    if stored != set(trained):
        odd = sorted(stored ^ set(trained))
        raise ValueError(f"its parameters are not the model's: {odd[0]} ({nearest(odd[0], trained)})")
    for name, parameter in trained.items():
        whole = {key: reader.get_tensor(f"{key}/{name}") for key in ("param", *MOMENTS)}
        _set(state, parameter, whole, optimizer_step)
    if ema is not None:
        ema.load({name: reader.get_tensor(f"ema/{name}") for name in trained})
    for name, value in _buffers(engine.module).items():
        value.copy_(reader.get_tensor(f"buffer/{name}"))


def _link(engine: Any) -> None:
    """Let ZeRO-1 and -2 know each parameter's part of the flat moments.

    DeepSpeed does so after the first group has stepped, when the other groups have no moments yet.
    """
    if hasattr(engine.optimizer, "_hp_optimizer_states_linked"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _fresh(like: Tensor, step: int) -> dict[str, Tensor]:
    moments = {key: torch.zeros_like(like, memory_format=torch.preserve_format) for key in MOMENTS}
    return {"step": torch.tensor(float(step)), **moments}


def _set(state: Any, parameter: Any, whole: dict[str, Tensor], optimizer_step: int) -> None:
    """Put a parameter's whole tensors where this rank keeps its part of them."""
    part = {key: weights.scatter(parameter, value) for key, value in whole.items()}
    weights.local(parameter).copy_(part["param"])
    if weights.is_sharded(parameter):  # ZeRO-3
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        safe_set_local_fp32_param(parameter, part["param"])
        for key in MOMENTS:
            safe_set_local_optimizer_state(parameter, part[key], key)
    elif hasattr(parameter, "_hp_mapping"):  # ZeRO-1, ZeRO-2, bf16
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        safe_set_full_fp32_param(parameter, whole["param"])
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, whole[key], key)
    else:
        state[parameter] = _fresh(parameter, optimizer_step)
        for key in MOMENTS:
            state[parameter][key].copy_(whole[key])
