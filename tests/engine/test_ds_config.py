"""The DeepSpeed JSON: where it is found, what it must not say, how batches divide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.engine import ds_config
from gkd_scale.engine.ds_config import ACCUMULATION, MICRO
from gkd_scale.errors import ConfigError
from tests.conftest import ROOT

LAUNCHERS = ROOT / "launchers"
CPU = torch.device("cpu")


def resolve(name: str, *, batch: int | None = None, world: int = 1, device: torch.device = CPU) -> Any:
    return ds_config.resolve(name, LAUNCHERS, global_batch=batch, world=world, device=device, default=32)


def write(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "mine.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_a_file_here_comes_before_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("zero2.json").path == LAUNCHERS / "zero2.json"
    Path("zero2.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    assert resolve("zero2.json").stage == 1


@pytest.mark.parametrize("path", sorted(LAUNCHERS.glob("zero*.json")), ids=lambda path: path.name)
def test_bundled_configs_are_accepted(path: Path) -> None:
    plan = resolve(path.name, batch=16, world=2)
    assert plan.stage == int(path.name[4])
    assert (plan.micro_batch, plan.accumulation, plan.global_batch) == (8, 1, 16)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_what_is_auto_is_filled_so_that_the_product_is_the_global_batch(m: int, a: int, world: int) -> None:
    whole = m * a * world
    for given_m, given_a in ((m, a), (m, None), (None, a), (None, None)):
        micro, accumulation = ds_config._divide(Path("x"), given_m, given_a, whole, world)
        assert micro * accumulation * world == whole
        assert given_m in (None, micro)
        assert given_a in (None, accumulation)


def test_the_json_decides_where_nobody_else_does(tmp_path: Path) -> None:
    plan = resolve(write(tmp_path, {MICRO: 3, ACCUMULATION: 4}), world=2)
    assert plan.global_batch == 24
    assert resolve(write(tmp_path, {MICRO: 4})).accumulation == 8


@pytest.mark.parametrize(
    ("value", "batch", "world", "message"),
    [
        ("{not json", None, 1, "is not JSON"),
        ([], None, 1, "not an object"),
        ({"optimizer": {"type": "Adam"}}, None, 1, "--optim.weight-decay"),
        ({"train_batch_size": 8}, None, 1, "--global-batch"),
        ({"zero_optimisation": {}}, None, 1, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stage": 4}}, None, 1, "stage"),
        ({MICRO: "four"}, None, 1, "'four'"),
        ({MICRO: 4, ACCUMULATION: 2}, 9, 1, "global batch of 9"),
        ({}, 7, 2, "a world of 2"),
        ({}, 0, 1, "at least 1"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, 12, 12, "a world of 12"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}}, None, 1, "CPU"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, None, 1, "both"),
    ],
)
def test_mistakes_name_the_file_and_the_value(
    tmp_path: Path, value: Any, batch: int | None, world: int, message: str
) -> None:
    name = write(tmp_path, value)
    with pytest.raises(ConfigError) as error:
        resolve(name, batch=batch, world=world)
    assert message in str(error.value)


def test_an_unknown_name_lists_what_is_bundled() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'zero2\.json'"):
        resolve("zer2.json")
