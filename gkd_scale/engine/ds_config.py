"""The DeepSpeed JSON: found, checked, completed.

It owns ZeRO, precision, micro batch, accumulation and clipping; our config owns the rest (optimizer,
schedule, global batch). What both say is an error that names both places. ``"auto"`` for the micro
batch or the accumulation is filled so that micro · accumulation · world = global batch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gkd_scale.errors import ConfigError, nearest

MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"

_OURS = {
    "optimizer": "the optim section (--lr, --optim.weight-decay)",
    "scheduler": "the optim section (--lr, --optim.warmup)",
    "train_batch_size": "--global-batch",
    "tensorboard": "the run folder, which always holds TensorBoard logs",
}
_KNOWN = tuple(
    f"""{MICRO} {ACCUMULATION} gradient_clipping zero_optimization bf16 fp16 torch_autocast data_types
    activation_checkpointing communication_data_type seq_parallel_communication_data_type sparse_gradients
    prescale_gradients gradient_predivide_factor disable_allgather zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer wall_clock_breakdown memory_breakdown steps_per_print comms_logger
    flops_profiler dump_state aio compile graph_harvesting""".split()
)


@dataclass(frozen=True)
class DeepSpeedPlan:
    """A resolved DeepSpeed config. ``json`` is what the engine gets; sizes are in images."""

    path: Path
    json: dict[str, Any]
    micro_batch: int
    accumulation: int
    global_batch: int

    @property
    def stage(self) -> int:
        """The ZeRO stage, 0 to 3."""
        return int(self.json.get("zero_optimization", {}).get("stage", 0))

    @property
    def dtype(self) -> torch.dtype:
        """What parameters are held in for forward and backward."""
        if self.json.get("bf16", {}).get("enabled", False):
            return torch.bfloat16
        return torch.float16 if self.json.get("fp16", {}).get("enabled", False) else torch.float32


def find(name: str, bundled: Path) -> Path:
    """``name`` as a path if it exists, else the bundled config of that name; ConfigError otherwise."""
    path = Path(name)
    if path.is_file():
        return path
    if (bundled / path.name).is_file() and path.name == name:
        return bundled / name
    names = sorted(file.name for file in bundled.glob("zero*.json"))
    raise ConfigError(
        f"there is no DeepSpeed config '{name}', neither here nor bundled",
        nearest(name, names) or f"bundled: {', '.join(names)}",
    )


def resolve(
    ds_config: str,
    bundled: Path,
    *,
    global_batch: int | None,
    world: int,
    device: torch.device,
    default: int,
) -> DeepSpeedPlan:
    """Read, check and complete a DeepSpeed config.

    ``global_batch`` is the user's, or None; ``default`` is used where neither it nor the JSON decides.
    Raises ConfigError.
    """
    path = find(ds_config, bundled)
    config = _read(path)
    _refuse_overlap(path, config)
    _refuse_precision(path, config, device)
    micro, accumulation = _number(path, config, MICRO), _number(path, config, ACCUMULATION)
    if global_batch is None:
        global_batch = micro * accumulation * world if micro and accumulation else default
    if global_batch < 1:
        raise ConfigError(f"--global-batch is {global_batch}", "give at least 1")
    micro, accumulation = _divide(path, micro, accumulation, global_batch, world)
    config = {
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **config,
        MICRO: micro,
        ACCUMULATION: accumulation,
    }
    return DeepSpeedPlan(path, config, micro, accumulation, global_batch)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}", "mend the file") from None
    if not isinstance(config, dict):
        raise ConfigError(
            f"{path} holds a {type(config).__name__}, not an object", "see launchers/zero2.json"
        )
    return config


def _refuse_overlap(path: Path, config: dict[str, Any]) -> None:
    for key in config:
        if key in _OURS:
            raise ConfigError(
                f"both {path} ('{key}') and gkd-scale's config ({_OURS[key]}) set the same thing",
                f"remove '{key}' from {path}: gkd-scale's config owns it",
            )
        if key not in _KNOWN:
            raise ConfigError(
                f"{path}: unknown key '{key}'", nearest(key, _KNOWN) or "see DeepSpeed's documentation"
            )
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: 'zero_optimization' is {zero!r}", 'write {"stage": 0}, 1, 2 or 3')


def _refuse_precision(path: Path, config: dict[str, Any], device: torch.device) -> None:
    for key in ("bf16", "fp16"):
        if not isinstance(config.get(key, {}), dict):
            raise ConfigError(f"{path}: '{key}' is {config[key]!r}", 'write {"enabled": true}')
    fp16 = config.get("fp16", {}).get("enabled", False)
    if fp16 and config.get("bf16", {}).get("enabled", False):
        raise ConfigError(f"{path} enables both fp16 and bf16", "enable one")
    if fp16 and device.type == "cpu":
        raise ConfigError(
            f"{path} enables fp16, which DeepSpeed refuses on a CPU", "use bf16, or no half precision"
        )
    if fp16 and config.get("zero_optimization", {}).get("stage", 0) == 0:
        raise ConfigError(f"{path} enables fp16 without ZeRO", "use ZeRO stage 1 or more, or bf16")


def _number(path: Path, config: dict[str, Any], key: str) -> int | None:
    value = config.get(key, "auto")
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path}: '{key}' is {value!r}", 'give a whole number of at least 1, or "auto"')
    return value


def _divide(
    path: Path, micro: int | None, accumulation: int | None, global_batch: int, world: int
) -> tuple[int, int]:
    """Fill the missing one of micro and accumulation; ConfigError where no whole number does."""
    known = (micro or 1) * (accumulation or 1) * world
    if global_batch % known or (micro and accumulation and known != global_batch):
        parts = [f"a world of {world}"]
        parts += [f"{MICRO} {micro} of {path}"] if micro else []
        parts += [f"{ACCUMULATION} {accumulation} of {path}"] if accumulation else []
        raise ConfigError(
            f"a global batch of {global_batch} is not made of {', '.join(parts)}",
            f"use --global-batch {max(1, round(global_batch / known)) * known}, or another number of ranks",
        )
    rest = global_batch // known
    if micro is None:
        return rest, accumulation or 1
    return micro, accumulation or rest
