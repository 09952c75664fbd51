"""What may change between a run and its resumption is said by each option, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gkd_scale import config
from gkd_scale.distill.config import Stage1Config
from gkd_scale.engine import run
from gkd_scale.errors import ConfigError, RunError
from gkd_scale.segment.config import Stage2Config

RUN = {
    *("ds_config", "out", "steps", "global_batch", "save_every", "keep", "keep_every", "workers", "log"),
    *("dry_run", "world", "timeout_minutes"),
}
STAGE1 = {"epochs", "grad_checkpointing", "mirror", "mirror_gb", "on_corrupt", "ledger"}


@pytest.mark.parametrize(("cls", "volatile"), [(Stage1Config, RUN | STAGE1), (Stage2Config, RUN)])
def test_the_options_that_may_change(cls: Any, volatile: set[str]) -> None:
    whole, identity = config.to_dict(cls()), run.identity(cls())
    assert whole.keys() - identity.keys() == volatile
    assert identity["seed"] == 0 and identity["student"] == whole["student"]
    assert {"name": "adamw", **identity["optim"]} == whole["optim"], "runs of before have no name there"


def test_a_run_goes_on_with_other_volatile_options_alone(tmp_path: Path) -> None:
    cfg = config.build(Stage2Config, {"out": tmp_path / "run", "steps": 5})
    run.begin(tmp_path / "run", cfg, "stage2", run.identity(cfg, steps=5))
    again = config.build(Stage2Config, config.read_yaml(tmp_path / "run" / run.CONFIG))
    assert again == cfg
    more = config.copy_with(cfg, keep=7, workers=0, log=["none"])
    run.begin(tmp_path / "run", more, "stage2", run.identity(more, steps=5))
    other = config.copy_with(cfg, seed=1)
    with pytest.raises(RunError, match="seed: 0 then, 1 now"):
        run.begin(tmp_path / "run", other, "stage2", run.identity(other, steps=5))
    other = replace(cfg, method=config.copy_with(cfg.method, teacher_layer=(3,)))
    with pytest.raises(RunError, match=r"method.teacher_layer: None then, \[3\] now"):
        run.begin(tmp_path / "run", other, "stage2", run.identity(other, steps=5))


def test_each_stage_has_its_folder_and_its_length() -> None:
    one, two = config.to_dict(Stage1Config()), config.to_dict(Stage2Config())
    assert (one["out"], one["steps"], one["save_every"]) == ("runs/stage1", None, 500)
    assert (two["out"], two["steps"], two["save_every"]) == ("runs/stage2", 400, 200)


@pytest.mark.parametrize("cls", [Stage1Config, Stage2Config])
def test_no_logger_beside_another(cls: Any) -> None:
    with pytest.raises(ConfigError, match="none"):
        config.build(cls, {"log": ["none", "wandb"]})


@pytest.mark.parametrize(("name", "cls"), [("stage1", Stage1Config), ("stage2", Stage2Config)])
def test_a_config_of_before_the_sections_is_read_and_written_alike(name: str, cls: Any) -> None:
    """``begun/*.yaml`` are as version 0.1 wrote them beside a run that may have to go on."""
    file = Path(__file__).parent / "begun" / f"{name}.yaml"
    values = config.read_yaml(file)
    cfg = config.build(cls, values, str(file))
    now = config.to_dict(cfg)
    assert config.merge(now, values) == now, "options that came later have their defaults"
    assert config.parse(cls, ["--config", str(file)], prog=name, description="") == cfg
