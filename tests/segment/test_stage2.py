"""Stage 2 without a launcher: what is built, frozen, validated, kept and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gkd_scale import config as configs
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import ConfigError, DataError, ModelError, RunError
from gkd_scale.models.backbone import load_backbone
from gkd_scale.segment import export
from gkd_scale.segment.augment import SegBatch
from gkd_scale.segment.config import Stage2Config
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.inference import confusion
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.segment.stage2 import (
    BEST_FOLDER,
    Validator,
    assert_same,
    build_segmenter,
    learning_rate,
    read_best,
)
from gkd_scale.types import IGNORE, SegSample

from .support import CLASSES, Blocks, picture, tiny_backbone, tiny_segmenter

ALONE = Runtime(0, 1, torch.device("cpu"))
SIZE = (32, 48)


def options(out: Path, *argv: str) -> Stage2Config:
    arguments = ("--out", str(out), "--image-size", "32x48", "--backbone", str(out.parent / "stage1"), *argv)
    return configs.parse(Stage2Config, arguments, prog="stage2.py", description="")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    tiny_backbone().save(tmp_path / "stage1")
    return tmp_path / "run"


def batch(images: int = 2) -> SegBatch:
    samples = [Blocks(images)[index] for index in range(images)]
    pixels = torch.stack([torch.from_numpy(each.image).permute(2, 0, 1) for each in samples])
    return SegBatch(pixels, torch.stack([torch.from_numpy(each.label) for each in samples]))


@pytest.mark.parametrize(("head", "rate"), [("linear", 0.01), ("fpn", 0.01), ("mask2former", 0.003)])
def test_only_the_head_is_trained_and_the_backbone_stays_as_it_was(out: Path, head: str, rate: float) -> None:
    args = ("--head-args", "size=small", "width=32", "points=256") if head == "mask2former" else ()
    segmenter = build_segmenter(options(out, "--head", head, *args), len(CLASSES))
    before = {name: value.clone() for name, value in segmenter.backbone.state_dict().items()}
    assert segmenter.kept == set(before)
    optimizer = torch.optim.AdamW((p for p in segmenter.parameters() if p.requires_grad), rate)
    losses = []
    for _ in range(20):
        segmenter.train()
        optimizer.zero_grad()
        loss = segmenter(batch())["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert not any(module.training for module in segmenter.backbone.modules())
    assert all(p.grad is None for p in segmenter.backbone.parameters())
    assert_same(before, segmenter.backbone.state_dict())


def test_full_adaptation_trains_the_backbone_too(out: Path) -> None:
    segmenter = build_segmenter(options(out, "--adapt", "full"), len(CLASSES))
    segmenter.train()
    segmenter(batch())["loss"].backward()
    assert segmenter.backbone.training
    assert any(p.grad is not None and p.grad.any() for p in segmenter.backbone.parameters())


def test_the_last_blocks_are_trained_and_the_others_stay_bit_for_bit(out: Path) -> None:
    run = Script(out, "--adapt", "last1")
    backbone, rest = run.segmenter.backbone, run.segmenter.kept
    names = {name for name in backbone.state_dict() if name.startswith(("net.blocks.3.", "net.norm."))}
    assert names and rest == set(backbone.state_dict()) - names
    training = {name for name, each in backbone.net.named_modules() if each.training}
    assert "blocks.3.mlp" in training and "blocks.2.mlp" not in training and "norm" in training
    original = tiny_backbone().state_dict()
    assert_same(*({name: each[name] for name in rest} for each in (original, backbone.state_dict())))
    assert all(not torch.equal(original[name], backbone.state_dict()[name]) for name in names)

    run.at(10, 0.0)
    run.validator.export(run.data)
    segmenter, card = export.load_segmenter(out)
    assert card.adapt == "last1"
    assert_same(backbone.state_dict(), segmenter.backbone.state_dict())


def test_validation_notices_a_frozen_block_that_was_touched(out: Path) -> None:
    run = Script(out, "--adapt", "last2")
    with torch.no_grad():
        next(run.segmenter.backbone.net.get_submodule("blocks.1").parameters()).add_(1e-3)
    with pytest.raises(AssertionError, match=r"'net\.blocks\.1\..*' changed during stage 2"):
        run.validator(10, run.segmenter)


def test_batch_statistics_of_frozen_blocks_stay() -> None:
    backbone = load_backbone(None, "resnet10t", {})
    segmenter = Segmenter(backbone, build_head("linear", backbone.channels, len(CLASSES)), last_blocks=1)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    segmenter.train()
    segmenter(batch())["loss"].backward()
    names = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert names and all(name.startswith("net.layer4.") for name in names)
    assert not names & segmenter.kept


def test_from_scratch_is_a_function_of_the_seed(tmp_path: Path) -> None:
    def weights(seed: str) -> dict[str, torch.Tensor]:
        arguments = ("--adapt", "full", "--seed", seed, "--out", str(tmp_path / "x"), "--image-size", "32x48")
        config = configs.parse(Stage2Config, arguments, prog="stage2.py", description="")
        return build_segmenter(config, 3).state_dict()

    first, again, other = weights("0"), weights("0"), weights("1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_change_of_one_bit_of_the_backbone_is_seen() -> None:
    before = tiny_backbone().state_dict()
    after = {name: value.clone() for name, value in before.items()}
    assert_same(before, after)
    assert_same(before, {name: value.bfloat16() for name, value in after.items()})
    name = next(name for name, value in after.items() if value.ndim == 1)
    after[name][0] = -0.0 if after[name][0] == 0 else torch.nextafter(after[name][0], torch.tensor(9.0))
    with pytest.raises(AssertionError, match="changed during stage 2"):
        assert_same(before, after)


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (("--backbone", "nowhere/stage1"), RunError, "there is no backbone nowhere/stage1"),
        (("--image-size", "30x48"), ConfigError, "use --image-size 32x48"),
        (("--head", "fnp"), ConfigError, "did you mean 'fpn'"),
        (("--student", "resnet10t"), ModelError, "--student asks for resnet10t"),
        (("--adapt", "last4"), ModelError, "has 4 blocks"),
    ],
)
def test_mistakes(out: Path, argv: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_segmenter(options(out, *argv), len(CLASSES))


def test_the_normalisation_of_a_weights_file_can_be_given(out: Path) -> None:
    segmenter = build_segmenter(options(out, "--mean", "0.5", "0.5", "0", "--std", "0.5", "0.5", "1"), 3)
    assert segmenter.backbone.mean == (0.5, 0.5, 0.0) and segmenter.fill == (128, 128, 0)
    pixel = torch.tensor([255.0, 0.0, 51.0])[None, :, None, None]
    torch.testing.assert_close(segmenter.backbone.normalize(pixel).flatten(), torch.tensor([1.0, -1.0, 0.2]))


def test_a_run_does_not_overwrite_its_own_backbone(out: Path) -> None:
    with pytest.raises(ConfigError, match="--backbone and --out are both"):
        build_segmenter(options(out.parent / "stage1"), len(CLASSES))


def test_learning_rate_rises_then_falls_to_zero(out: Path) -> None:
    config = options(out, "--steps", "100", "--lr", "0.5", "--optim.warmup", "0.1")
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates.index(max(rates)) == 10 and rates[10] == 0.5
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[99] < 0.02 and rates[100] == 0


class Script:
    """A run with a trained head, whose weights are then put at a given distance from their best."""

    def __init__(self, out: Path, *argv: str) -> None:
        self.config = options(out, *argv)
        self.segmenter = build_segmenter(self.config, len(CLASSES))
        self.data = Blocks(4)
        self.validator = Validator(self.segmenter, {"blocks": self.data}, self.config, ALONE)
        optimizer = torch.optim.AdamW((p for p in self.segmenter.parameters() if p.requires_grad), 0.02)
        for _ in range(30):
            optimizer.zero_grad()
            self.segmenter(batch(4))["loss"].backward()
            optimizer.step()
        self.good = {name: value.clone() for name, value in self.segmenter.head.state_dict().items()}

    def at(self, step: int, noise: float) -> float:
        generator = torch.Generator().manual_seed(step)
        self.segmenter.head.load_state_dict(
            {
                name: value + noise * torch.randn(value.shape, generator=generator)
                if value.is_floating_point() and "running" not in name
                else value
                for name, value in self.good.items()
            }
        )
        return self.validator(step, self.segmenter)["val_miou"]


def test_the_best_step_is_kept_and_exported(out: Path) -> None:
    run = Script(out)
    scores = {10: run.at(10, 2.0), 20: run.at(20, 0.0), 30: run.at(30, 2.0)}
    assert scores[20] > max(scores[10], scores[30])
    assert read_best(out) == {"step": 20, "miou": scores[20]}
    assert [folder.name for folder in (out / BEST_FOLDER).iterdir()] == ["20"]
    with pytest.raises(RunError, match="no finished stage-2 run"):
        export.load_segmenter(out)

    assert run.validator.export(run.data) == read_best(out)
    segmenter, card = export.load_segmenter(out)
    assert (card.step, card.miou, card.image_size, card.adapt) == (20, scores[20], SIZE, "frozen")
    assert card.classes == list(CLASSES) and card.palette == list(Blocks.palette)
    assert_same(run.segmenter.backbone.state_dict(), segmenter.backbone.state_dict())
    assert all(torch.equal(value, run.good[name]) for name, value in segmenter.head.state_dict().items())
    assert not segmenter.training
    again = Validator(segmenter, {"blocks": run.data}, run.config, ALONE)
    assert again(40, segmenter) == {"val_miou": scores[20]}


def test_each_domain_of_validation_is_scored_by_itself_and_the_mean_decides(out: Path) -> None:
    run = Script(out)
    small, large = Blocks(1), Blocks(7, [(64, 96)])
    run.at(0, 2.0)
    alone = {
        name: Validator(run.segmenter, {name: data}, run.config, ALONE)(1, run.segmenter)["val_miou"]
        for name, data in (("small", small), ("large", large))
    }
    both = Validator(run.segmenter, {"small": small, "large": large}, run.config, ALONE)
    assert both(2, run.segmenter) == {
        "val_miou": pytest.approx(sum(alone.values()) / 2),
        **{f"val_miou/{name}": value for name, value in alone.items()},
    }
    assert alone["small"] != alone["large"]


def test_classes_without_labels_do_not_count_in_validation(out: Path) -> None:
    run = Script(out)
    run.at(0, 2.0)
    iou = confusion(run.segmenter.eval(), run.data, SIZE).iou()
    without = Validator(run.segmenter, {"blocks": run.data}, run.config, ALONE, absent=CLASSES[:1])
    assert without(1, run.segmenter)["val_miou"] == pytest.approx(100 * np.nanmean(iou[1:]))


def test_the_same_score_later_does_not_replace_the_first(out: Path) -> None:
    run = Script(out)
    first = run.at(10, 0.0)
    assert run.at(20, 0.0) == first
    best = read_best(out)
    assert best is not None and best["step"] == 10


def test_full_adaptation_exports_the_trained_backbone(out: Path) -> None:
    run = Script(out, "--adapt", "full")
    run.at(10, 0.0)
    run.validator.export(run.data)
    segmenter, card = export.load_segmenter(out)
    assert card.adapt == "full"
    assert_same(run.segmenter.backbone.state_dict(), segmenter.backbone.state_dict())
    with pytest.raises(AssertionError):
        assert_same(tiny_backbone().state_dict(), segmenter.backbone.state_dict())


def test_validation_leaves_the_trained_module_alone(out: Path) -> None:
    run = Script(out)
    run.segmenter.train()
    before = {name: value.clone() for name, value in run.segmenter.state_dict().items()}
    run.validator(10, run.segmenter)
    assert run.segmenter.head.training
    assert_same(before, run.segmenter.state_dict())


def test_validation_notices_a_backbone_that_was_touched(out: Path) -> None:
    run = Script(out)
    with torch.no_grad():
        next(run.segmenter.backbone.parameters()).add_(1e-3)
    with pytest.raises(AssertionError, match="changed during stage 2"):
        run.validator(10, run.segmenter)


def test_validation_data_without_a_labelled_pixel_is_refused(out: Path) -> None:
    segmenter = tiny_segmenter()
    void = Blocks(2)
    void.samples = [
        SegSample(each.name, picture(each.label), (each.label * 0 + IGNORE).astype(each.label.dtype))
        for each in void.samples
    ]
    with pytest.raises(DataError, match="--val blocks has no labelled pixel"):
        Validator(segmenter, {"blocks": void}, options(out), ALONE)(1, segmenter)


def test_a_damaged_card_says_so(out: Path) -> None:
    out.mkdir()
    (out / "segmenter.yaml").write_text("format: 99\n")
    with pytest.raises(RunError, match=r"segmenter\.yaml cannot be read"):
        export.load_card(out)
