"""The table of students: what it says is what timm builds, and it is quick to ask."""

from __future__ import annotations

import json

import pytest
import timm

from gkd_scale.cli import main
from gkd_scale.engine.zero_memory import zero_memory
from gkd_scale.models import zoo


def test_the_table_spans_1_m_to_1_b_and_timm_has_every_name() -> None:
    rows = zoo.read()
    assert [row.name for row in rows] == sorted(
        (name for names in zoo.NAMES.values() for name in names),
        key=lambda name: next((row.parameters, name) for row in rows if row.name == name),
    )
    assert rows[0].parameters < 2e6 and rows[-1].parameters > 1e9
    assert all(timm.is_model(row.name.split(".")[0]) for row in rows)
    assert {row.family for row in rows} == set(zoo.NAMES)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "efficientvit_m0", "swin_tiny_patch4_window7_224"])
def test_a_row_is_what_is_counted_today(name: str) -> None:
    (row,) = [row for row in zoo.read() if row.name == name]
    assert zoo.count(name, row.family) == row


def test_the_table_says_size_shape_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", "--filter", "dinov2", "--gpus", "1"]) == 0
    output = capsys.readouterr().out
    for part in ("vit_large_patch14_dinov2", "DINOv2", "303.2", "1024", "24", "16x16", "ZeRO-3", "6.06"):
        assert part in output, part
    assert "resnet50" not in output


def test_json_filters_and_shares_the_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--filter", "vit", "--filter", "DINOv3", "--millions", "50", "200", "--gpus", "4", "--json"]
    assert main(["students", *flags]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "vit_base_patch16_dinov3"
    memory = zero_memory(row["parameters"], row["largest_layer"], 4)
    assert row["zero_gb"] == {
        str(stage): pytest.approx(size / 1e9, abs=1e-4) for stage, size in memory.items()
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--filter", "efficientvid"], "did you mean 'EfficientViT'"),
        (["--millions", "2000", "3000"], "2000 to 3000 M"),
        (["--gpus", "0"], "--gpus"),
    ],
)
def test_mistakes_exit_2(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
