"""The options of stage 2 and evaluate, through the same door as the command line."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from gkd_scale import config as configs
from gkd_scale.errors import ConfigError
from gkd_scale.segment.config import EvaluateConfig, Stage2Config
from gkd_scale.segment.heads import registry as heads
from gkd_scale.segment.methods import registry as methods


def stage2(*argv: str) -> Stage2Config:
    return configs.parse(Stage2Config, argv, prog="stage2.py", description="")


def evaluate(*argv: str) -> EvaluateConfig:
    return configs.parse(EvaluateConfig, argv, prog="gkd-scale evaluate", description="")


def test_nothing_more_is_the_embedded_default() -> None:
    config = stage2()
    assert config.backbone.path() == Path("runs/stage1") and config.backbone.student_name() is None
    assert config.data.train_sets() == ["embedded:runs/demo-data/source/train"]
    assert config.data.val_sets() == ["embedded:runs/demo-data/source/val"]
    assert config.run.out == Path("runs/stage2")


def test_the_baseline_starts_from_scratch_unless_it_names_a_backbone() -> None:
    scratch = stage2("--adapt", "full")
    assert scratch.backbone.path() is None and scratch.backbone.student_name() == "demo_student"
    other = stage2("--adapt", "full", "--backbone", "runs/x")
    assert other.backbone.path() == Path("runs/x") and other.backbone.student_name() is None


def test_flags() -> None:
    config = stage2(
        *(
            "--train",
            "camvid:a",
            "--train",
            "camvid:b",
            "--val",
            "camvid:c",
            "--image-size",
            "144x192",
            "--lr",
            "0.01",
        ),
        *("--augment.scale", "0.8", "1.25", "--head", "fpn", "--head-args", "width=64"),
    )
    assert config.data.train_sets() == ["camvid:a", "camvid:b"]
    assert config.size() == (144, 192) and config.optim.lr == 0.01
    assert config.augment.scale == (0.8, 1.25) and config.head_args == {"width": 64}


@pytest.mark.parametrize(
    "argv",
    [
        ("--image-size", "12x"),
        ("--image-size", "0"),
        ("--steps", "0"),
        ("--std", "0.5", "0", "0.5"),
        ("--train", "camvid:a"),
        ("--val", "camvid:a"),
        ("--val-every", "-1"),
        ("--augment.flip", "2"),
        ("--augment.scale", "2", "1"),
        ("--augment.cat-max-ratio", "0"),
        ("--augment.photometric", "3"),
        ("--method", "none", "--adapt", "last4"),
        ("--adapt", "half"),
        ("--adapt", "last0"),
        ("--inference", "tiles"),
        ("--window", "32"),
        ("--inference", "slide", "--window", "32", "--stride", "33"),
        ("--haed", "fpn"),
        ("--label-fraction", "0"),
        ("--label-fraction", "2"),
        ("--label-fraction", "1/0"),
        ("--label-fraction", "few"),
        ("--train-weights", "0.5", "0.5"),
        ("--train", "camvid:a", "--val", "camvid:b", "--train-weights", "0"),
        ("--sampling", "rare"),
        ("--sampling-temperature", "0"),
    ],
)
def test_what_cannot_be_meant_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        stage2(*argv)


def test_sources_are_mixed_and_cut() -> None:
    flags = ("--train", "gtav:a", "--train", "synthia:b", "--val", "gtav:a@val")
    config = stage2(*flags, "--train-weights", "0.75", "0.25", "--label-fraction", "1/16")
    assert config.data.train_weights == (0.75, 0.25) and config.data.label_share() == Fraction(1, 16)
    assert stage2("--label-fraction", "0.25").data.label_share() == Fraction(1, 4)


def test_the_learning_rate_suits_what_is_trained_unless_given() -> None:
    assert stage2("--lr", "0.2", "--head", "fpn").peak_lr() == 0.2
    linear, fpn, full = (stage2(*a).peak_lr() for a in ((), ("--head", "fpn"), ("--adapt", "full")))
    assert linear > fpn > full > 0
    decoder, both = (stage2("--head", "mask2former", *a).peak_lr() for a in ((), ("--adapt", "full")))
    assert decoder == both == 1e-4 and stage2("--adapt", "last4").peak_lr() == full


def test_the_last_blocks_are_trained_on_a_backbone_that_was_trained_before() -> None:
    config = stage2("--adapt", "last4")
    assert config.backbone.last_blocks() == 4 and config.backbone.path() == Path("runs/stage1")
    assert stage2().backbone.last_blocks() == stage2("--adapt", "full").backbone.last_blocks() == 0


def test_windows() -> None:
    assert stage2().inference.windows((512, 512)) is None
    assert stage2("--inference", "slide").inference.windows((512, 768)) == ((512, 768), (341, 512))
    cfg = evaluate("run", "--inference", "slide", "--window", "64x96", "--stride", "32")
    assert cfg.inference.windows((512, 512)) == ((64, 96), (32, 32))


@pytest.mark.parametrize(
    "argv", [("--tta-scales", "0"), ("--tta-scales", "1", "-1"), ("--batch-size", "0"), ("--stride", "5")]
)
def test_evaluation_that_cannot_be_meant_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        evaluate("run", *argv)


def test_domains() -> None:
    config = evaluate("runs/x", "--data", "night=embedded:d/night", "--data", "dusk=camvid:a=b/dusk")
    assert config.run == Path("runs/x")
    assert config.domains() == {"night": "embedded:d/night", "dusk": "camvid:a=b/dusk"}


@pytest.mark.parametrize(
    "data", [[], ["night"], ["=camvid:x"], ["night="], ["a=camvid:x", "a=camvid:y"]], ids=str
)
def test_malformed_or_repeated_domains_are_refused(data: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--data"):
        evaluate("run", *(part for text in data for part in ("--data", text))).domains()


def test_importing_the_options_does_not_import_torch() -> None:
    code = "import sys, gkd_scale.segment.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_arguments_of_heads_and_methods_are_those_of_their_classes() -> None:
    for registry, ours in (
        (heads.HEADS, ("channels", "classes")),
        (methods.METHODS, ("backbone", "teacher")),
    ):
        for name, row in registry.items():
            if row.make is not None:
                parameters = inspect.signature(pkgutil.resolve_name(row.make)).parameters
                assert set(row.arguments) == {key for key in parameters if key not in ours}, name


@pytest.mark.parametrize(
    "argv",
    [
        ("--head", "fpn", "--head-args", "widht=64"),
        ("--head", "fpn", "--head-args", "width=-1"),
        ("--head", "fpn", "--head-args", "width=0.5"),
        ("--head", "fpn", "--head-args", "width=wide"),
        ("--head", "fpn", "--head-args", "dropout=1"),
        ("--head", "mask2former", "--head-args", "queries=nan"),
        ("--method", "cwd", "--teacher", "demo_teacher", "--method-args", "temperature=0"),
        ("--method", "g2sd", "--teacher", "demo_teacher", "--method-args", "weight=2"),
        ("--student-args", "depth=2.5"),
        ("--student-args", "drop_path_rate=1.5"),
        ("--student-args", "qkv_bias=no"),
        ("--student-args", "depth=4", "depth=6"),
    ],
)
def test_arguments_are_checked_before_anything_is_written(argv: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        stage2(*argv)
