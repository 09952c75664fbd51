"""The presets: each parses as the launcher parses it, and names what timm has."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from gkd_scale import config
from gkd_scale.distill.config import MaskConfig, Stage1Config, published
from gkd_scale.models.cost import cost
from tests.conftest import ROOT

PRESET = ROOT / "launchers/presets/published.yaml"
PRESETS = sorted({*PRESET.parent.glob("*.yaml")} - {PRESET})


def parse(path: Path, *flags: str) -> Stage1Config:
    return config.parse(Stage1Config, ["--config", str(path), *flags], prog="stage1.py", description="")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_parses_and_timm_knows_its_names(path: Path) -> None:
    cfg = parse(path, "--cache", "caches/x")
    (student,) = cfg.student.names
    for name in (cfg.source.teacher, student):
        assert name in timm.models.get_arch_pretrained_cfgs(str(name).split(".")[0])
    side, patch = (224, 14) if path.stem.endswith("1a") else (512, 16)
    assert cfg.student.args == {"img_size": side, "patch_size": patch}
    assert cost(str(student), (side, side), cfg.student.args).grid == (side // patch, side // patch)
    assert cfg.optim.lr == pytest.approx(5e-4 * cfg.run.global_batch / 512)
    assert cfg.run.out.name == path.stem
    assert f"`{path.stem.removesuffix('_1b').removesuffix('_1a')}" in (path.parent / "README.md").read_text()


def test_the_published_form_has_the_losses_of_the_paper() -> None:
    cfg = parse(PRESET)
    assert (cfg.loss, cfg.qsd) == published()
    assert (cfg.mask, cfg.conditioning.norm) == (MaskConfig(), "none")


def test_flags_win_over_a_preset_and_phases_follow_each_other() -> None:
    assert len(PRESETS) == 10
    by_name = {path.stem: path for path in PRESETS}
    second = parse(by_name["dinov2-l_vit-b_1b"], "--epochs", "3")
    assert second.run.epochs == 3
    assert second.student.weights == str(parse(by_name["dinov2-l_vit-b_1a"]).run.out)
