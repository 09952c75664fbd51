"""Checks every key of a DeepSpeed JSON, level by level, and ignores none silently.

DeepSpeed checks the first level; an error deeper down appears at the step that needs the value. It takes
``"auto"``, which Hugging Face's Trainer would replace, as its default or as a value. Here each key does
what it says, or is an error that names our flag for it, or gets a note. We build the sections as DeepSpeed's
models and then the whole as its ``DeepSpeedConfig``; what these refuse becomes an error of one line.
"""

from __future__ import annotations

import logging
import math
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gkd_scale.errors import ConfigError, nearest, short
from gkd_scale.ranges import Range

MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"
CLIPPING = 1.0
"""The value of ``"gradient_clipping": "auto"``, as in the bundled configs."""

_OURS = {
    "optimizer": "the optim section (--lr, --optim.weight-decay)",
    "scheduler": "the optim section (--lr, --optim.warmup)",
    "train_batch_size": "--global-batch",
    **dict.fromkeys(
        ("tensorboard", "wandb", "csv_monitor", "comet", "monitor_config"),
        "--log; OUT/metrics.jsonl is always there",
    ),
}
"""Keys that gkd-scale's config owns, and the flags that set them."""

_NO_SPLIT = "models are not cut into parts here: ZeRO 3 shards their parameters"
_NO_LOG = "OUT/metrics.jsonl and --log have times and rates"
_NO_SUCH = "DeepSpeed has removed it"
_REFUSED = {
    "activation_checkpointing": "stage 1 has --grad-checkpointing",
    "autotuning": "tuning/search.py searches; DeepSpeed's autotuner starts another program",
    "checkpoint": "gkd-scale writes checkpoints of its own (--save-every, --keep)",
    "compile": "stage 1 has --compile",
    "data_efficiency": "batches come from gkd-scale's loader",
    "dataloader_drop_last": "batches come from gkd-scale's loader",
    "datastates": "gkd-scale writes checkpoints of its own (--save-every, --keep)",
    "gradient_allreduce_op": "gradients are means over the global batch",
    "hybrid_engine": "it is for generating text",
    "managed_gradient_accumulation": "gkd-scale counts micro batches itself",
    "seq_parallel_communication_data_type": _NO_SPLIT,
    "weight_quantization": "it is for inference",
    **dict.fromkeys(
        (
            *("pipeline", "tensor_parallel", "expert_parallel", "sequence_parallel_size", "vocabulary_size"),
            *("use_data_before_expert_parallelism", "disable_allgather"),
        ),
        _NO_SPLIT,
    ),
    **dict.fromkeys(
        ("comms_logger", "dump_state", "log_level", "memory_breakdown", "timers", "wall_clock_breakdown"),
        _NO_LOG,
    ),
    **dict.fromkeys(
        (
            *("amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity"),
            *("fp32_allreduce", "graph_harvesting", "nebula", "progressive_layer_drop"),
            *("quantize_training", "sparse_attention", "sparse_gradients"),
        ),
        _NO_SUCH,
    ),
}
"""Keys that would do nothing here or would break gkd-scale, and the reason."""

_NUMBERS = {
    "gradient_clipping": Range(
        ge=0, le=1e9, hint="the largest norm of a gradient, for example 1.0; 0 is off"
    ),
    "gradient_predivide_factor": Range(gt=0, le=1e9, hint="for example 1.0"),
}
_SWITCHES = (
    *("prescale_gradients", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    "disable_python_gc",
)
_DTYPES = ("fp32", "fp16", "bf16")
_WITHOUT_EFFECT = {
    "steps_per_print": "gkd-scale shows its own progress",
    "aio": "it is for NVMe",
}

_ZERO = "zero_optimization"
_SECTION_REFUSED = {
    **dict.fromkeys(
        ("bf16_master_weights_and_grads", "fp16_master_weights_and_grads", "bf16_optimizer_states"),
        "master weights and moments are float32 here",
    ),
    "zenflow": "gkd-scale's checkpoints do not hold its state",
    **dict.fromkeys(
        ("leaf_module", "module_granularity_threshold"), "no model here has modules of that kind"
    ),
    "legacy_stage1": "DeepSpeed has removed it",
    "super_offload": "it needs DeepSpeed's own Adam, and the optimizer here is PyTorch's",
    "ratio": "it needs DeepSpeed's own Adam, and the optimizer here is PyTorch's",
    "compute_grad_norm": "gkd-scale logs the norm of the gradients",
    "zero_quantized_nontrainable_weights": "frozen weights stay as they are, bit for bit",
}
_ZERO_CHECKPOINTS = (
    *("load_from_fp32_weights", "elastic_checkpoint", "pipeline_loading_checkpoint"),
    *("gather_16bit_weights_on_model_save", "save_muon_momentum_buffer_in_memory"),
)
_NVME = (
    *("nvme_path", "buffer_count", "buffer_size", "max_in_cpu"),
    *("pipeline_read", "pipeline_write", "fast_init"),
)
_QUANTISATION = ("zero_quantized_weights", "zero_quantized_gradients")
_ZERO3 = ("zero_hpz_partition_size", *_QUANTISATION)
_ZERO_DECIDES = ("stage", "device", "enabled")
"""Keys that decide how a run trains: "auto" is not filled with a default."""


@dataclass
class Result:
    """``config`` has no "auto" and no key without effect; the user sees ``notes``.

    ``undecided`` are the keys whose "auto" has no default that we could take.
    """

    path: Path
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    def refuse(self, key: str, value: Any, hint: str) -> typing.NoReturn:
        """Raise ConfigError for the value of a key."""
        raise ConfigError(f"{self.path}: '{key}' is {short(repr(value))}", hint)


def check(path: Path, config: Mapping[str, Any], device: torch.device) -> Result:
    """Check ``config`` and complete it, except for batch sizes. Raises ConfigError."""
    rules = _rules()
    _refuse_overlap(path, config, rules)
    result = Result(path, {})
    for key, value in config.items():
        if key in _REFUSED and not _is_off(value):
            raise ConfigError(f"{path}: '{key}' does nothing here", f"remove it: {_REFUSED[key]}")
        if key in _WITHOUT_EFFECT:
            result.notes.append(f"{key} has no effect: {_WITHOUT_EFFECT[key]}")
        elif key in rules and (final := rules[key](result, key, value)) is not None:
            result.config[key] = final
    if result.undecided:
        keys = " and ".join(f"'{key}'" for key in result.undecided)
        raise ConfigError(
            f'{path}: nothing decides what "auto" is for {keys}',
            "write a value: for 'enabled' true or false (one of bf16 and fp16, or neither for float32)",
        )
    _refuse_contradictions(result, device)
    return result


def build(path: Path, config: dict[str, Any]) -> None:
    """Build DeepSpeed's config object; ConfigError with the first line of DeepSpeed's error."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.utils import logger

    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        DeepSpeedConfig(dict(config))
    except Exception as error:  # of any kind: DeepSpeed does not take this JSON
        raise ConfigError(f"{path}: DeepSpeed refuses it: {_first_line(error)}", "mend the file") from None
    finally:
        logger.setLevel(level)


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Inside the block, a setting of ``path`` that DeepSpeed refuses with the model is a ConfigError."""
    try:
        yield
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(
            f"DeepSpeed does not start with {path}: {type(error).__name__}: {_first_line(error)}",
            "mend the file; --ds-config zero2.json, the bundled one, starts",
        ) from error


# --------------------------------------------------------------------------------------- top level


def _refuse_overlap(path: Path, config: Mapping[str, Any], rules: Iterable[str]) -> None:
    keys = [*rules, *_REFUSED, *_OURS, *_WITHOUT_EFFECT]
    for key, value in config.items():
        if key in _OURS and value != "auto" and not _is_off(value):
            raise ConfigError(
                f"both {path} ('{key}') and gkd-scale's config ({_OURS[key]}) set the same thing",
                f"remove '{key}' from {path}: gkd-scale's config owns it",
            )
        if key not in keys and re.match(r"_|//|#|comment", key):
            raise ConfigError(f"{path}: '{key}' is no key of DeepSpeed", "remove it: JSON has no comments")
        if key not in keys:
            raise ConfigError(
                f"{path}: unknown key '{key}'", nearest(key, keys) or "see DeepSpeed's documentation"
            )


def _is_off(value: Any) -> bool:
    """Whether a section or switch is off, or holds only such values."""
    if isinstance(value, Mapping):
        return value.get("enabled") is False or all(map(_is_off, value.values()))
    return value is None or value is False


Check = Callable[[Result, str, Any], Any]


def _rules() -> dict[str, Check]:
    """The check of each key that works. A check returns the value for DeepSpeed; None leaves the key out."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        MICRO: _count,
        ACCUMULATION: _count,
        **dict.fromkeys(_NUMBERS, _number),
        **dict.fromkeys(_SWITCHES, _switch),
        "communication_data_type": _dtype,
        _ZERO: lambda result, key, value: _section(result, key, value, DeepSpeedZeroConfig),
        "bf16": lambda result, key, value: _section(result, key, value, DeepSpeedBF16Config),
        "fp16": lambda result, key, value: _section(result, key, value, DeepSpeedFP16Config),
        "torch_autocast": _autocast,
        "data_types": _data_types,
        "flops_profiler": _flops_profiler,
    }


def _count(result: Result, key: str, value: Any) -> Any:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
        result.refuse(key, value, 'give a whole number of at least 1, or "auto"')
    return value


def _number(result: Result, key: str, value: Any) -> Any:
    if value == "auto":
        default = CLIPPING if key == "gradient_clipping" else 1.0
        result.notes.append(f'{key} "auto" is {default}')
        return default
    bounds = _NUMBERS[key]
    if not isinstance(value, (int, float)) or bounds.wrong(value):
        result.refuse(key, value, bounds.hint)
    return value


def _switch(result: Result, key: str, value: Any) -> Any:
    if value == "auto":
        result.notes.append(f'{key} "auto" is DeepSpeed\'s default')
        return None
    if not isinstance(value, bool):
        result.refuse(key, value, "write true or false")
    return value


def _dtype(result: Result, key: str, value: Any) -> Any:
    if value in (None, "auto"):
        return None
    if value not in _DTYPES:
        result.refuse(key, value, f"write {', '.join(_DTYPES)}")
    return value


# --------------------------------------------------------------------------------------- sections


def _section(result: Result, key: str, value: Any, model: Any) -> dict[str, Any]:
    """A section, checked against DeepSpeed's pydantic ``model``, without "auto"."""
    if not isinstance(value, Mapping):
        zero = 'write {"stage": 0}' + ", 1, 2 or 3" * bool(value)
        result.refuse(key, value, zero if key == _ZERO else _switch_hint(value))
    fields: dict[str, Any] = model.model_fields
    names = {field.alias or name: name for name, field in fields.items()} | {name: name for name in fields}
    keys: dict[str, str] = {}
    section: dict[str, Any] = {}
    for inner, item in value.items():
        place = f"{key}.{inner}"
        if inner not in names:
            _unknown(result, place, names)
        name = names[inner]
        if name in keys:
            raise ConfigError(
                f"{result.path}: '{key}' says the same thing twice: {keys[name]} and {inner}", "keep one"
            )
        keys[name] = inner
        _note_or_refuse(result, place, name, item, fields[name])
        if _is_deprecated(result, place, name, item, fields[name]):
            continue
        new_item = _value(result, place, name, item, fields[name])
        if new_item is not _LEFT_OUT:
            section[inner] = new_item
    _validate(result, key, section, model)
    return section


def _switch_hint(value: Any) -> str:
    return f'write {{"enabled": {"true" if value else "false"}}}'


def _note_or_refuse(result: Result, key: str, name: str, value: Any, field: Any) -> None:
    """ConfigError for a key that does not work here; a note for a key without effect."""
    if name in _SECTION_REFUSED and value not in (field.default, {}, "auto"):
        raise ConfigError(
            f"{result.path}: '{key}' does not work here", f"remove it: {_SECTION_REFUSED[name]}"
        )
    if name in _ZERO_CHECKPOINTS:
        result.notes.append(f"{key} has no effect: gkd-scale writes checkpoints of its own")
    if name in _NVME:
        result.notes.append(f"{key} has no effect: it is for NVMe")


def _is_deprecated(result: Result, key: str, name: str, value: Any, field: Any) -> bool:
    """Whether DeepSpeed has renamed a key that is off; ConfigError with the new name if it is on."""
    extra = field.json_schema_extra
    if not (isinstance(extra, dict) and extra.get("deprecated")):
        return False
    if _is_off(value):
        return True
    device = ': {"device": "cpu"}' if name in ("cpu_offload", "cpu_offload_param") else ""
    raise ConfigError(f"{result.path}: '{key}' is an old name", f"write '{extra['new_param']}'{device}")


def _validate(result: Result, key: str, values: dict[str, Any], model: Any) -> None:
    """Build DeepSpeed's ``model`` of a section; ConfigError with its first complaint."""
    import pydantic

    try:
        model(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join([key, *map(str, first["loc"])])
        value = f" is {short(repr(first['input']))}" if first["loc"] else ""
        message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        raise ConfigError(f"{result.path}: '{place}'{value}: {message}", "mend that key") from None


_LEFT_OUT = object()
_MOST_ELEMENTS = 10**11
"""The limit of a bucket, which DeepSpeed allocates whole."""


def _value(result: Result, key: str, name: str, value: Any, field: Any) -> Any:
    """The value of a section's key, or ``_LEFT_OUT`` for DeepSpeed's default."""
    kinds = set(_kinds(field.annotation))
    if value == "auto":
        if name in _ZERO_DECIDES:
            result.undecided.append(key)
        else:
            default = field.get_default(call_default_factory=True)
            result.notes.append(f'{key} "auto" is DeepSpeed\'s default, {default!r}')
        return _LEFT_OUT
    model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    if model and isinstance(value, Mapping):
        return _section(result, key, value, model)
    if model and value is not None and "device" in model.model_fields:
        result.refuse(key, value, 'write {"device": "cpu"}')
    if value is None and type(None) not in kinds:
        result.refuse(key, value, "remove it, or give a value")
    if bool in kinds and not isinstance(value, (bool, type(None))):
        result.refuse(key, value, "write true or false")
    if bool not in kinds and isinstance(value, bool):
        result.refuse(key, value, "it is no switch: see DeepSpeed's documentation")
    if any(issubclass(kind, (int, float)) for kind in kinds - {bool} if isinstance(kind, type)):
        if isinstance(value, str):
            result.refuse(key, value, "write a number, without quotes")
        if wrong := Range(ge=0, le=_MOST_ELEMENTS if name.endswith("bucket_size") else None).wrong(value):
            raise ConfigError(f"{result.path}: '{key}' is {wrong}", "see DeepSpeed's documentation")
        if name == "allgather_bucket_size" and value % 2:
            result.refuse(key, value, "write an even number: NCCL wants its parts aligned")
    return value


def _kinds(annotation: Any) -> Iterable[Any]:
    """The types in an annotation; of a union, its parts."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def _autocast(result: Result, key: str, value: Any) -> Any:
    _plain_section(result, key, value, ("enabled", "dtype", "lower_precision_safe_modules"))
    dtype = value.get("dtype")
    if dtype in ("float16", "fp16", "half"):
        result.refuse(
            f"{key}.dtype", dtype, "write bfloat16: DeepSpeed leaves its loss scale in the gradients"
        )
    if value.get("enabled") is True and dtype not in ("bfloat16", "bf16"):
        result.refuse(f"{key}.dtype", dtype, "write bfloat16")
    modules = value.get("lower_precision_safe_modules")
    for module in modules if isinstance(modules, list) else [modules] * (modules is not None):
        if not (isinstance(module, str) and module.startswith("torch.nn.") and _is_class(module)):
            result.refuse(
                f"{key}.lower_precision_safe_modules",
                module,
                'give a list of classes, for example "torch.nn.Linear"',
            )
    return dict(value)


def _is_class(name: str) -> bool:
    try:
        return isinstance(pkgutil.resolve_name(name), type)
    except (ImportError, AttributeError, ValueError):
        return False


def _data_types(result: Result, key: str, value: Any) -> Any:
    _plain_section(result, key, value, ("grad_accum_dtype",))
    dtype = value.get("grad_accum_dtype")
    if dtype not in (None, "auto", *_DTYPES):
        result.refuse(f"{key}.grad_accum_dtype", dtype, f"write {', '.join(_DTYPES)}")
    return {} if dtype in (None, "auto") else dict(value)


_PROFILER = {
    "enabled": bool,
    "recompute_fwd_factor": float,
    "profile_step": int,
    "module_depth": int,
    "top_modules": int,
    "detailed": bool,
    "output_file": str,
}


def _flops_profiler(result: Result, key: str, value: Any) -> Any:
    _plain_section(result, key, value, _PROFILER)
    for inner, item in value.items():
        kind = _PROFILER[inner]
        fits = isinstance(item, (int, float) if kind is float else kind)
        fits = fits and isinstance(item, bool) == (kind is bool)
        if not fits and not (item is None and kind is str):
            result.refuse(f"{key}.{inner}", item, f"give a {kind.__name__}")
        if isinstance(item, float) and not math.isfinite(item):
            result.refuse(f"{key}.{inner}", item, "give a finite number")
    return dict(value)


def _plain_section(result: Result, key: str, value: Any, names: Iterable[str]) -> None:
    """Check keys and ``enabled`` of a section for which DeepSpeed has no model."""
    if not isinstance(value, Mapping):
        result.refuse(key, value, _switch_hint(value))
    for inner in value:
        if inner not in names:
            _unknown(result, f"{key}.{inner}", names)
    enabled = value.get("enabled", False)
    if enabled == "auto":
        result.undecided.append(f"{key}.enabled")
    elif not isinstance(enabled, bool):
        result.refuse(f"{key}.enabled", enabled, "write true or false")


def _unknown(result: Result, place: str, names: Iterable[str]) -> typing.NoReturn:
    names = list(names)
    raise ConfigError(
        f"{result.path}: unknown key '{place}'",
        nearest(place.rpartition(".")[2], names) or f"known: {', '.join(names)}",
    )


# ---------------------------------------------------------------------------------- contradictions


def enabled(config: Mapping[str, Any], key: str) -> bool:
    """Whether a section is on."""
    return bool(config.get(key, {}).get("enabled", False))


def _refuse_contradictions(result: Result, device: torch.device) -> None:
    path, config = result.path, result.config
    zero = config.get(_ZERO, {})
    stage = zero.get("stage", 0)
    modes = [key for key in ("bf16", "fp16", "torch_autocast") if enabled(config, key)]
    if len(modes) > 1:
        raise ConfigError(f"{path} enables both {' and '.join(modes)}", "enable one")
    if "fp16" in modes and device.type == "cpu":
        raise ConfigError(
            f"{path} enables fp16, which DeepSpeed refuses on a CPU", "use bf16, or no half precision"
        )
    if stage == 0 and ("fp16" in modes or "bf16" in modes):  # zero.py does not find Adam's moments then
        raise ConfigError(f"{path} enables {modes[0]} without ZeRO", 'add "zero_optimization": {"stage": 1}')
    for key, default in (("prescale_gradients", False), ("gradient_predivide_factor", 1.0)):
        if stage and config.get(key, default) != default:
            raise ConfigError(f"{path}: '{key}' does not go with ZeRO {stage}", "remove it, or use ZeRO 0")
    dtype = config.get("data_types", {}).get("grad_accum_dtype", "fp32")
    if stage == 0 and dtype != "fp32":
        raise ConfigError(
            f"{path}: 'data_types.grad_accum_dtype' is {dtype!r}, which does not go with ZeRO 0",
            "remove it, or use ZeRO 1 or 2",
        )
    for part, minimum in (("offload_optimizer", 1), ("offload_param", 3)):
        target = (zero.get(part) or {}).get("device", "none")
        if target == "none":
            continue
        name = f"'{_ZERO}.{part}'"
        if stage < minimum:
            raise ConfigError(
                f"{path}: {name} does nothing with ZeRO {stage}",
                f"use ZeRO stage {minimum} or more, or remove it",
            )
        if target == "nvme":
            raise ConfigError(
                f"{path}: {name} goes to NVMe, which gkd-scale's checkpoints do not read",
                'write "device": "cpu"',
            )
        if part == "offload_optimizer" and config.get("zero_force_ds_cpu_optimizer"):
            raise ConfigError(
                f"{path}: 'zero_force_ds_cpu_optimizer' is true, but the optimizer here is PyTorch's AdamW",
                "remove it",
            )
    for key in _QUANTISATION:
        if zero.get(key) and device.type == "cpu":
            raise ConfigError(f"{path}: '{_ZERO}.{key}' needs a GPU", "remove it")
    unused = [key for key in zero if (key.startswith("stage3_") or key in _ZERO3) and stage < 3]
    if stage == 0:
        unused = [key for key in zero if key != "stage"]
    if unused:
        result.notes.append(f"{', '.join(unused)} of {_ZERO}: no effect with ZeRO {stage}")


# ------------------------------------------------------------------------------------------- words


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:300] if lines else type(error).__name__
