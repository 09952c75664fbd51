"""Kind H: DeepSpeed JSONs, as people bring them from Hugging Face and from DeepSpeed's documentation."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from tests.cases.case import Bench, Ran, case
from tests.conftest import TINY, cache_flags, tiny_args, write_images

KIND = "H. The DeepSpeed JSON"
ZERO2 = {"zero_optimization": {"stage": 2}}


@functools.cache
def tiny_cache() -> Path:
    """A cache of 6 images, made once for all cases."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(prefix="gkd-cases-"))
    torch.manual_seed(5)
    save_file(
        timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).state_dict(),
        folder / "t.safetensors",
    )
    images = write_images(folder / "images", 6)
    assert (
        Bench(folder)
        .cli("cache-teacher", *cache_flags(images, folder / "t.safetensors", folder / "cache"))
        .code
        == 0
    )
    return folder / "cache"


def train(bench: Bench, config: Any, out: str = "run") -> Ran:
    """Two steps of stage 1 with a DeepSpeed JSON, a text or a value."""
    path = bench.folder / f"{out}.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    student = ("--student", "vit_tiny_patch16_224", "--student-args", *tiny_args())
    sizes = ("--steps", 2, "--global-batch", 4, "--workers", 0, "--lr", "1e-2", "--optim.warmup", 0)
    return bench.stage1(
        "--ds-config", path, "--cache", tiny_cache(), *student, *sizes, "--out", bench.folder / out
    )


def _zero(stage: object, **more: object) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **more}}


def losses(bench: Bench, out: str) -> list[float]:
    rows = [json.loads(line) for line in (bench.folder / out / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)
    return [row["loss"] for row in rows]


def _refuses(what: str, config: Any, *messages: str) -> None:
    def run(bench: Bench) -> object:
        ran = train(bench, config)
        assert ran.code == 2 and all(each in ran.text for each in messages), ran.text
        assert len(ran.text) < 400 and "pydantic" not in ran.text, ran.text
        assert not (bench.folder / "run").exists()
        return ran

    case(KIND, what)(run)


def _trains(what: str, config: Any, same: Any, *messages: str) -> None:
    """``config`` trains exactly as ``same``, and the run's first lines say ``messages``."""

    def run(bench: Bench) -> object:
        ran = train(bench, config)
        assert ran.code == 0 and all(each in ran.text for each in messages), ran.text
        assert train(bench, same, "same").code == 0
        assert losses(bench, "run") == losses(bench, "same")
        return f"ok, and says: {'; '.join(messages)}"

    case(KIND, what)(run)


_trains(
    'ds/auto_clip.json: `"gradient_clipping": "auto"`',
    {"gradient_clipping": "auto", **ZERO2},
    {"gradient_clipping": 1.0, **ZERO2},
    "ZeRO 2, float32, clipped at 1",
    'gradient_clipping "auto" is 1.0',
)
_refuses(
    'ds/auto_bf16.json: `"bf16": {"enabled": "auto"}`',
    {"bf16": {"enabled": "auto"}, **ZERO2},
    "'bf16.enabled'",
    "true or false",
)
_refuses(
    "ds/auto_all.json: a JSON for Hugging Face's Trainer",
    {
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": True,
            "reduce_bucket_size": "auto",
            "contiguous_gradients": True,
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    },
    "'fp16.enabled' and 'bf16.enabled'",
)
_trains(
    "the same with `bf16` true and `fp16` false",
    {
        "fp16": {"enabled": False, "loss_scale": 0, "loss_scale_window": 1000},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "steps_per_print": 100,
        "wall_clock_breakdown": False,
    },
    {
        "bf16": {"enabled": True},
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "overlap_comm": True},
    },
    "ZeRO 2, bfloat16, clipped at 1",
    'zero_optimization.reduce_bucket_size "auto" is DeepSpeed\'s default, 500,000,000',
    "steps_per_print has no effect",
)
_refuses(
    "ds/typo_zero.json: `overlap_com`",
    {"zero_optimization": {"stage": 2, "overlap_com": True}},
    "'zero_optimization.overlap_com'",
    "did you mean 'overlap_comm'?",
)
_refuses(
    "ds/bucket0.json: `reduce_bucket_size` 0",
    {"zero_optimization": {"stage": 1, "reduce_bucket_size": 0}},
    "'zero_optimization.reduce_bucket_size' is 0",
)
_refuses(
    "ds/dup_key.json", '{"zero_optimization":{"stage":2},"zero_optimization":{"stage":0}}', "is there twice"
)
_refuses(
    "an offload with a typo in `pin_memory`",
    {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memmory": True}}},
    "'zero_optimization.offload_param.pin_memmory'",
    "did you mean 'pin_memory'?",
)
_refuses("`bf16` with a typo in `enabled`", {"bf16": {"enable": True}, **ZERO2}, "'bf16.enable'", "'enabled'")
_refuses('`"bf16": true`', {"bf16": True, **ZERO2}, "'bf16' is True")
_refuses('`"overlap_comm": "true"`', {"zero_optimization": {"stage": 2, "overlap_comm": "true"}}, "'true'")
_refuses('`"gradient_clipping": "1.0"`', {"gradient_clipping": "1.0"}, "'gradient_clipping' is '1.0'")
_refuses('`"gradient_clipping": -1`', {"gradient_clipping": -1}, "'gradient_clipping' is -1")
_refuses('`"gradient_clipping": NaN`', '{"gradient_clipping": NaN}', "NaN")
_refuses("bf16 without ZeRO", {"bf16": {"enabled": True}}, "without ZeRO", '"stage": 1')
_refuses(
    "autocast to float16",
    {"torch_autocast": {"enabled": True, "dtype": "float16"}},
    "'torch_autocast.dtype'",
    "bfloat16",
)
_refuses('`"compile": {"deepcompile": true}`', {"compile": {"deepcompile": True}}, "'compile'", "--compile")
_refuses(
    "activation checkpointing",
    {"activation_checkpointing": {"partition_activations": True}},
    "--grad-checkpointing",
)
_refuses("curriculum learning", {"curriculum_learning": {"enabled": True}}, "'curriculum_learning'")
_refuses("pipeline stages", {"pipeline": {"stages": 2}}, "'pipeline'")
_refuses("elasticity", {"elasticity": {"enabled": True, "max_train_batch_size": 64}}, "'elasticity'")
_refuses("an optimizer", {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "'optimizer'", "--lr")
_refuses("a scheduler", {"scheduler": {"type": "WarmupLR"}}, "'scheduler'", "--optim.warmup")
_refuses(
    "offloaded parameters with ZeRO 2",
    {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
    "'zero_optimization.offload_param'",
)
_refuses(
    "an offload to NVMe",
    {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}}},
    "NVMe",
)
_refuses(
    "an old name: `cpu_offload`",
    {"zero_optimization": {"stage": 2, "cpu_offload": True}},
    """write 'offload_optimizer': {"device": "cpu"}""",
)
_refuses(
    "one setting under two names",
    {"zero_optimization": {"stage": 3, "prefetch_bucket_size": 1, "stage3_prefetch_bucket_size": 2}},
    "twice",
)
_refuses("comments in the JSON", '{\n  // ZeRO\n  "zero_optimization": {"stage": 2}\n}', "no comments")
_refuses("a comma too many", '{\n  "zero_optimization": {"stage": 2},\n}', "comma")
_refuses("an empty JSON", "", "empty")
_trains(
    "sections that say that they are off",
    {
        "compile": {},
        "flops_profiler": {"enabled": False},
        "autotuning": {"enabled": False},
        "tensorboard": {"enabled": False},
    },
    {},
    "ZeRO 0, float32, not clipped",
)
_trains(
    "Lightning's and Megatron's JSONs: activation checkpointing of which all is off, `cpu_offload` false",
    {
        "activation_checkpointing": {
            "partition_activations": False,
            "cpu_checkpointing": False,
            "contiguous_memory_optimization": False,
            "number_checkpoints": None,
        },
        "fp32_allreduce": False,
        "zero_optimization": {"stage": 2, "cpu_offload": False},
    },
    ZERO2,
    "ZeRO 2, float32, not clipped",
)
_trains(
    "`aio`, which DeepSpeed's tutorials add for NVMe",
    {"aio": {"block_size": 262144, "queue_depth": 32}, **ZERO2},
    ZERO2,
    "aio has no effect: it is for NVMe",
)
_refuses("a comment as a key", {"_comment": "ZeRO 2", **ZERO2}, "'_comment'", "no comments")
_refuses("`BF16`", {"BF16": {"enabled": True}, **ZERO2}, "did you mean 'bf16'?")
_trains(
    "`stage3_` keys with ZeRO 2",
    {"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1000}},
    ZERO2,
    "stage3_max_live_parameters of zero_optimization: no effect with ZeRO 2",
)
_trains(
    "a JSON with a byte order mark",
    "\ufeff" + json.dumps(ZERO2),
    ZERO2,
    "ZeRO 2, float32, not clipped",
)

_refuses('`"stage": "3"` with an offload', _zero("3", offload_param={"device": "cpu"}), "without quotes")
_refuses('`"stage": "0"` with bf16', {"bf16": {"enabled": True}, **_zero("0")}, "without quotes")
_refuses("an odd `allgather_bucket_size`", _zero(2, allgather_bucket_size=500_000_001), "an even number")
_refuses('`"offload_optimizer": "cpu"`', _zero(2, offload_optimizer="cpu"), '{"device": "cpu"}')
_refuses('`"fp16": false`', {"fp16": False, **ZERO2}, 'write {"enabled": false}')
_refuses(
    "`stage3_module_granularity_threshold`", _zero(3, stage3_module_granularity_threshold=9), "remove it"
)
_refuses(
    "`grad_accum_dtype` without ZeRO",
    {"data_types": {"grad_accum_dtype": "bf16"}},
    "'data_types.grad_accum_dtype'",
)
_refuses(
    "`lower_precision_safe_modules` without their package",
    {"torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": ["Linear"]}},
    "'torch_autocast.lower_precision_safe_modules'",
    "torch.nn.Linear",
)
_refuses(
    '`"torch_autocast": {"enabled": "auto"}`',
    {"torch_autocast": {"enabled": "auto"}, **ZERO2},
    "'torch_autocast.enabled'",
)


@case(KIND, "the compile flag that the error names")
def the_error_names_a_flag_that_is_there(bench: Bench) -> object:
    ran = bench.stage1("--help")
    assert ran.code == 0 and "--compile" in ran.text and "--grad-checkpointing" in ran.text
    return ran
