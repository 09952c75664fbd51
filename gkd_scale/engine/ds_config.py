"""Finds the DeepSpeed JSON, checks it and completes it.

The JSON owns ZeRO, precision, micro batch, accumulation and clipping. Our config owns the rest: optimizer,
schedule, global batch. If both set the same thing, the error names both places. ``"auto"`` for the micro
batch or the accumulation becomes the number for which micro · accumulation · world = global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gkd_scale import documents
from gkd_scale.engine import ds_check
from gkd_scale.engine.ds_check import ACCUMULATION as ACCUMULATION
from gkd_scale.engine.ds_check import MICRO as MICRO
from gkd_scale.errors import ConfigError, nearest


@dataclass(frozen=True)
class DeepSpeedPlan:
    """A DeepSpeed config without open values. The engine gets ``json``; sizes are in images.

    ``notes`` tell the user what ``"auto"`` became and which keys have no effect.
    """

    path: Path
    json: dict[str, Any]
    micro_batch: int
    accumulation: int
    global_batch: int
    notes: tuple[str, ...] = ()

    @property
    def stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self.json.get("zero_optimization", {}).get("stage", 0))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters in forward and backward."""
        if ds_check.enabled(self.json, "bf16"):
            return torch.bfloat16
        return torch.float16 if ds_check.enabled(self.json, "fp16") else torch.float32

    @property
    def precision(self) -> str:
        """The precision that a run computes in, in words."""
        if ds_check.enabled(self.json, "torch_autocast"):
            return f"float32 under autocast to {self.json['torch_autocast']['dtype']}"
        return str(self.dtype).removeprefix("torch.")

    def summary(self) -> str:
        """Batch sizes, ZeRO stage, precision and clipping in one line, for the start of a run."""
        clipping = self.json.get("gradient_clipping", 0)
        return (
            f"micro batch {self.micro_batch}, accumulation {self.accumulation}, ZeRO {self.stage}, "
            f"{self.precision}, {f'clipped at {clipping:g}' if clipping else 'not clipped'}"
        )


def find(name: str, launchers: Path) -> Path:
    """The path ``name`` if it exists, else the bundled config of that name, else ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    if (launchers / path.name).is_file() and path.name == name:
        return launchers / name
    names = sorted(file.name for file in launchers.glob("zero*.json"))
    raise ConfigError(
        f"there is no DeepSpeed config '{name}', neither here nor bundled",
        nearest(name, names) or f"bundled: {', '.join(names)}",
    )


def resolve(
    ds_config: str,
    launchers: Path,
    *,
    global_batch: int | None,
    world: int,
    device: torch.device,
    default: int,
) -> DeepSpeedPlan:
    """Read, check and complete a DeepSpeed config.

    ``global_batch`` is the user's, or None. If neither it nor the JSON decides, the global batch is
    ``default``. Raises ConfigError.
    """
    path = find(ds_config, launchers)
    result = ds_check.check(path, documents.read_json(path), device)
    micro, accumulation = result.config.get(MICRO), result.config.get(ACCUMULATION)
    if global_batch is None:
        global_batch = micro * accumulation * world if micro and accumulation else default
    if global_batch < 1:
        raise ConfigError(f"--global-batch is {global_batch}", "give at least 1")
    micro, accumulation = _divide(path, micro, accumulation, global_batch, world)
    _check_second_shard(path, result.config, world)
    config = {
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **result.config,
        MICRO: micro,
        ACCUMULATION: accumulation,
    }
    ds_check.build(path, config)
    return DeepSpeedPlan(path, config, micro, accumulation, global_batch, tuple(result.notes))


def _check_second_shard(path: Path, config: dict[str, Any], world: int) -> None:
    """ConfigError if ZeRO++'s second shard is over a number of ranks that does not divide the world."""
    zero = config.get("zero_optimization", {})
    size = zero.get("zero_hpz_partition_size", 1)
    if zero.get("stage") == 3 and world % max(1, size):
        raise ConfigError(
            f"{path}: 'zero_optimization.zero_hpz_partition_size' is {size}, which does not divide a world "
            f"of {world}",
            "give the number of GPUs of a node, or launch whole nodes",
        )


def _divide(
    path: Path, micro: int | None, accumulation: int | None, global_batch: int, world: int
) -> tuple[int, int]:
    """Compute micro batch or accumulation if it is None; ConfigError if no whole number fits."""
    unit = (micro or 1) * (accumulation or 1) * world
    if global_batch % unit or (micro and accumulation and unit != global_batch):
        parts = [f"a world of {world}"]
        parts += [f"{MICRO} {micro} of {path}"] if micro else []
        parts += [f"{ACCUMULATION} {accumulation} of {path}"] if accumulation else []
        raise ConfigError(
            f"a global batch of {global_batch} is not made of {', '.join(parts)}",
            f"use --global-batch {max(1, round(global_batch / unit)) * unit}, or another number of ranks",
        )
    rest = global_batch // unit
    if micro is None:
        return rest, accumulation or 1
    return micro, accumulation or rest
