"""Mutated DeepSpeed JSONs and YAML configs become a config, or one of our errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd_scale import config, documents
from gkd_scale.benchmark.config import Recipe
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.distill.config import Stage1Config
from gkd_scale.engine import ds_config
from gkd_scale.errors import ConfigError
from gkd_scale.segment.config import Stage2Config
from tests.conftest import ROOT

LAUNCHERS = ROOT / "launchers"
JSONS = [json.loads(path.read_text()) for path in sorted(LAUNCHERS.glob("zero*.json"))] + [
    {
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "torch_autocast": {"enabled": False, "dtype": "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "flops_profiler": {"enabled": False, "profile_step": 1, "output_file": None},
    }
]
YAMLS = [(Stage1Config, path) for path in sorted((LAUNCHERS / "presets").glob("*.yaml"))[:3]] + [
    (Stage1Config, LAUNCHERS / "students.yaml"),
    (Recipe, ROOT / "benchmarks/recipes/camvid.yaml"),
]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [
            "auto",
            "",
            "cpu",
            "bf16",
            "true",
            "0",
            "3",
            "1e-3",
            "nan",
            1e-3,
            0.5,
            5.0,
            1e300,
            10**30,
            -1,
            {},
            [],
        ]
    ),
    st.dictionaries(st.sampled_from(["enabled", "stage", "device", "x"]), st.integers(0, 2), max_size=2),
)
FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def mutate(draw: st.DrawFn, values: Any, keys: list[str]) -> Any:
    """``values`` with a few of its keys changed, renamed, added or removed, at any depth."""
    values = json.loads(json.dumps(values))
    for _ in range(draw(st.integers(1, 3))):
        node = values
        while isinstance(node, dict) and node:
            key = draw(st.sampled_from(sorted(node)))
            if isinstance(node[key], dict) and node[key] and draw(st.booleans()):
                node = node[key]
                continue
            change = draw(st.integers(0, 3))
            if change == 0:
                node[key] = draw(ODD)
            elif change == 1:
                node[key[:-1] or "x"] = node.pop(key)
            elif change == 2:
                node[draw(st.sampled_from(keys))] = draw(ODD)
            else:
                del node[key]
            break
    return values


def one_line(error: ConfigError) -> None:
    assert error.message and "\n" not in error.message and len(error.message) < 1000


def known_keys() -> list[str]:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from gkd_scale.engine import ds_check

    zero = [field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()]
    return [*ds_check._rules(), *ds_check._REFUSED, *ds_check._OURS, *zero, "enabled", "device", "pin_memory"]


@FEW
@given(st.data())
def test_a_deepspeed_json_is_a_plan_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    values = mutate(data.draw, data.draw(st.sampled_from(JSONS)), known_keys())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    try:
        plan = ds_config.resolve(
            str(path), LAUNCHERS, global_batch=None, world=1, device=torch.device("cpu"), default=32
        )
    except ConfigError as error:
        one_line(error)
        assert str(path) in error.message
    else:
        assert plan.micro_batch * plan.accumulation == plan.global_batch
        assert plan.stage in (0, 1, 2, 3) and plan.precision and '"auto"' not in json.dumps(plan.json)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.json"]


@FEW
@given(st.data())
def test_a_yaml_config_is_a_config_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    cls, source = data.draw(st.sampled_from(YAMLS))
    keys = list(config.options(cls))
    values = mutate(data.draw, config.read_yaml(source), keys)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        cfg = config.build(cls, config.read_yaml(path), str(path))
    except ConfigError as error:
        one_line(error)
    else:
        assert config.build(cls, yaml.safe_load(config.to_yaml(cfg))) == cfg


@FEW
@given(st.data())
def test_text_that_was_damaged_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([path for _, path in YAMLS] + sorted(LAUNCHERS.glob("zero*.json"))))
    text = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(
            st.one_of(
                st.binary(max_size=2),
                st.sampled_from([b"\t", b"- ", b": ", b"*a ", b"&a ", b"{", b'"', b"'"]),
            )
        )
        text[at : at + data.draw(st.integers(0, 2))] = piece
    path = tmp_path / f"mine{source.suffix}"
    path.write_bytes(text)
    try:
        reader = documents.read_json if source.suffix == ".json" else documents.read_yaml
        assert isinstance(reader(path), dict)
    except ConfigError as error:
        one_line(error)
        assert str(path) in error.message


@FEW
@given(st.data())
def test_flags_are_a_config_or_an_error(data: st.DataObject) -> None:
    cls: Any = data.draw(st.sampled_from([Stage1Config, Stage2Config, CacheTeacherConfig]))
    fields = list(config.options(cls))
    sections = ["optim.lr", "optim.betas", "optim.warmup", "loss.cls-weight", "view.scale", "augment.scale"]
    argv = []
    for _ in range(data.draw(st.integers(1, 4))):
        argv.append(f"--{data.draw(st.sampled_from(fields + sections)).replace('_', '-')}")
        values = st.sampled_from(
            [
                "1",
                "0",
                "-1",
                "nan",
                "0.5",
                "auto",
                "a=1",
                "depth=nan",
                "width=[1",
                "x=!!set {a}",
                "1e400",
                "96x128",
                "~/x",
            ]
        )
        argv += data.draw(st.lists(values, max_size=3))
    try:
        assert isinstance(config.parse(cls, argv, prog="fuzz", description=""), cls)
    except ConfigError as error:
        one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {b: *a}",
        "a: &a [*a]",
        "? [1, 2]\n: x",
        "? {a: 1}\n: x",
        "!!int x: 1",
        "a: !!python/object:os.system {}",
        "a: !!int x",
        "a: !!timestamp x",
        "a: !!set {b}",
        "a: !!binary x",
        "a: =",
        "<<: 1",
        "<<: [1]",
        "a: 1\n---\nb: 2",
        "%YAML 9.9\n---\na: 1",
        "a: " + "[" * 2000,
        "a: " + "9" * 5000,
        "a: \x00",
        "\tb: 1",
        "- a\nb: 1",
        "a: 'x",
        "1: x",
        "null: x",
        "a: *b",
        "a: 0x_1",
    ],
)
def test_yaml_of_every_odd_kind(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    try:
        documents.read_yaml(path)
    except ConfigError as error:
        one_line(error)
        assert str(path) in error.message
