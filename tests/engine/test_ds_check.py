"""The DeepSpeed JSON, level by level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gkd_scale.engine import ds_check, ds_config
from gkd_scale.errors import ConfigError
from tests.conftest import ROOT

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ZERO2 = {"zero_optimization": {"stage": 2}}


def resolve(folder: Path, value: Any, device: torch.device = CPU) -> ds_config.DeepSpeedPlan:
    path = folder / "mine.json"
    path.write_text(json.dumps(value))
    launchers = ROOT / "launchers"
    return ds_config.resolve(str(path), launchers, global_batch=8, world=1, device=device, default=32)


def test_every_key_that_deepspeed_has_is_known_here() -> None:
    """A new DeepSpeed may read keys that nobody here has thought of."""
    import inspect
    import re

    from deepspeed.runtime import config, constants

    source = inspect.getsource(config)
    names = set(re.findall(r"param_dict(?:\.get)?[\[(]['\"](\w+)['\"]", source))
    names |= {
        getattr(constants, name)
        for name in re.findall(r"param_dict, ([A-Z_]+),", source)
        if isinstance(getattr(constants, name, None), str)
    }
    ours = {*ds_check._rules(), *ds_check._REFUSED, *ds_check._OURS, *ds_check._WITHOUT_EFFECT}
    assert {"gradient_clipping", "hybrid_engine", "compile"} <= names
    assert names <= ours, sorted(names - ours)
    assert set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS) <= ours


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"bf16": {"enabled": True}, **ZERO2}, "ZeRO 2, bfloat16, not clipped"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "float32 under autocast to bfloat16"),
        ({"gradient_clipping": 0.5}, "ZeRO 0, float32, clipped at 0.5"),
        ({"train_batch_size": "auto", **ZERO2}, "micro batch 8, accumulation 1"),
    ],
)
def test_the_start_line_says_precision_and_clipping(tmp_path: Path, value: Any, message: str) -> None:
    assert message in resolve(tmp_path, value).summary()


def test_fp16_is_for_gpus(tmp_path: Path) -> None:
    assert resolve(tmp_path, {"fp16": {"enabled": True}, **ZERO2}, CUDA).precision == "float16"


def test_what_is_auto_is_filled_and_said(tmp_path: Path) -> None:
    value = {
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto", "overlap_comm": "auto"},
    }
    plan = resolve(tmp_path, value)
    assert plan.json["gradient_clipping"] == 1.0 and plan.json["zero_optimization"] == {"stage": 3}
    assert len(plan.notes) == 3 and all('"auto" is' in note for note in plan.notes)


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": "auto"}, "'zero_optimization.stage'"),
        (
            {"stage": 2, "offload_optimizer": {"device": "auto"}},
            "'zero_optimization.offload_optimizer.device'",
        ),
        ({"stage": True}, "'zero_optimization.stage' is True"),
        ({"stage": 2, "reduce_bucket_size": True}, "reduce_bucket_size"),
        ({"stage": 2, "reduce_bucket_size": "5e8"}, "without quotes"),
        ({"stage": 2, "reduce_bucket_size": 10**15}, "reduce_bucket_size"),
        ({"stage": 2, "offload_optimizer": None, "zenflow": {"topk_ratio": 0.1}}, "zenflow"),
        ({"stage": 2, "compute_grad_norm": False}, "compute_grad_norm"),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, "offload_optimizer"),
        ({"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "ratio"),
        ({"stage": 3, "offload_optimizer": {"device": "disk"}}, "'disk'"),
        ({"stage": 3, "zero_quantized_weights": True}, "GPU"),
        ({"stage": 3, "zero_quantized_gradients": True}, "GPU"),
    ],
)
def test_zero_is_checked_key_by_key(tmp_path: Path, zero: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(tmp_path, {"zero_optimization": zero})
    assert message in str(error.value) and "\n" not in error.value.message


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    zero = {"stage": 0, "overlap_comm": True, "stage3_gather_16bit_weights_on_model_save": True}
    notes = resolve(tmp_path, {"steps_per_print": 10, "zero_optimization": zero}).notes
    assert len(notes) == 3 and all("no effect" in note for note in notes)
    assert not resolve(tmp_path, {"wall_clock_breakdown": False, "comms_logger": {"enabled": False}}).notes


def test_deepspeeds_own_refusal_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DeepSpeed refuses it") as error:
        ds_check.build(
            tmp_path / "x.json", {"train_micro_batch_size_per_gpu": 1, "communication_data_type": "x"}
        )
    assert "\n" not in error.value.message
