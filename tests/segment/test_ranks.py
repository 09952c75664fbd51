"""What two ranks do together: training under ZeRO 1 to 3 without touching the backbone, and evaluation.

One start of two processes for all of it, with DeepSpeed and gloo as a launcher would have them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gkd_scale import config as configs
from gkd_scale.engine.runtime import Runtime, free_port
from gkd_scale.segment import stage2
from gkd_scale.segment.augment import TrainStream
from gkd_scale.segment.config import EvaluateConfig, Stage2Config
from gkd_scale.segment.evaluate import evaluate
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.training_set import open_training_set, order_of
from gkd_scale.types import IGNORE
from tests import warm
from tests.conftest import tiny_args
from tests.ranks import become_rank

from .support import Blocks, pyramid, tiny_backbone, write_folder

LAUNCHERS = Path(__file__).parents[2] / "launchers"
CHANNELS = (6, 8, 10, 12)
SMALL = ("--head", "mask2former", "--head-args", "size=small", "width=32", "queries=8", "points=128")
DISTIL = ("--head", "linear", "--method", "vitkd", "--teacher", "vit_tiny_patch16_224")
CNN = ("--head", "linear", "--method", "none", "--student", "test_resnet", "--steps", "1")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "zero1": ("zero1", ("--head", "linear", "--inference", "slide", "--window", "32", "--stride", "16")),
    "zero2": ("zero2", ("--head", "fpn", "--adapt", "last2")),
    "zero3": ("zero3", SMALL),
    "vitkd1": ("zero1", DISTIL),
    "vitkd3": ("zero3", DISTIL),
    "convolutional": ("zero2", CNN),
}
"""Run to its DeepSpeed config and to what is trained under it."""


def labels(rank: int) -> torch.Tensor:
    """Two images with four classes on rank 0, one of which has a single class on rank 1."""
    label = torch.arange(4, dtype=torch.uint8).repeat_interleave(8)[None, :, None].repeat(2, 1, 48)
    if rank == 1:
        label[0], label[1] = 2, IGNORE
    return label


def mask_loss(rank: int) -> float:
    """The mask part of the loss on this rank's labels; points as torch's seed 0 draws them."""
    head = build_head("mask2former", CHANNELS, 4, {"size": "small", "width": 32, "queries": 8, "points": 128})
    torch.manual_seed(0)
    return head.losses(pyramid(CHANNELS, (32, 48)), labels(rank))["mask"].item()


def options(root: Path, name: str, zero: str, *flags: object) -> Stage2Config:
    arguments: list[object] = ["--ds-config", f"{zero}.json", "--out", root / name, "--image-size", "32x48"]
    arguments += ["--train", f"folder:{root / 'day'}", "--val", f"folder:{root / 'dusk'}", "--no-check"]
    arguments += ["--steps", "2", "--global-batch", "4", "--workers", "1", *flags]
    arguments += [] if "--student" in flags else ["--backbone", root / "stage1"]
    return configs.parse(Stage2Config, [str(each) for each in arguments], prog="stage2.py", description="")


def _rank(rank: int, port: int, folder: str) -> None:
    root, runtime = Path(folder), become_rank(rank, port)
    for name, (zero, flags) in RUNS.items():
        if "--teacher" in flags:
            flags += ("--teacher-weights", (root / "teacher").read_text(), "--teacher-args", *tiny_args())
        stage2.run(options(root, name, zero, *flags), runtime, LAUNCHERS)
    score(root, "two.json", runtime)
    (root / f"mask-{rank}.json").write_text(json.dumps(mask_loss(rank)))
    runtime.stop()


def score(root: Path, out: str, runtime: Runtime | None = None) -> Any:
    arguments = [str(root / "zero1"), "--data", f"dusk=folder:{root / 'dusk'}", "--json", str(root / out)]
    evaluate(configs.parse(EvaluateConfig, arguments, prog="evaluate", description=""), runtime)
    return json.loads((root / out).read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """A folder with what two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "teacher").write_text(str(tiny_teacher))
    tiny_backbone().save(folder / "stage1")
    write_folder(folder / "day", Blocks(8))
    write_folder(folder / "dusk", Blocks(5, [(32, 48), (33, 47)]))
    warm.spawn(_rank, free_port(), str(folder))
    return folder


@pytest.mark.parametrize("name", ["zero1", "zero3"])
def test_a_frozen_backbone_is_bit_identical_after_stage_2(root: Path, name: str) -> None:
    before, after = (root / each / "backbone.safetensors" for each in ("stage1", name))
    assert before.read_bytes() == after.read_bytes()


def test_the_frozen_blocks_are_bit_identical_where_the_last_ones_are_trained(root: Path) -> None:
    before, after = (load_file(root / each / "backbone.safetensors") for each in ("stage1", "zero2"))
    names = {name for name in before if not torch.equal(before[name], after[name])}
    assert names and all(name.startswith(("blocks.2.", "blocks.3.", "norm.")) for name in names)


def test_a_method_trains_on_two_ranks_alike_under_zero_1_and_3(root: Path) -> None:
    one, three = (
        [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("vitkd1", "vitkd3")
    )
    assert all(row["loss_task"] > 0 and row["loss"] > row["loss_task"] for row in one)
    assert [row["loss"] for row in three] == pytest.approx([row["loss"] for row in one], rel=1e-5)
    weights = [load_file(root / name / "backbone.safetensors") for name in ("stage1", "vitkd1", "vitkd3")]
    before, first, third = weights
    assert all(not torch.equal(before[name], first[name]) for name in before if name.endswith("weight"))
    assert all(torch.allclose(third[name], first[name], rtol=1e-3, atol=1e-5) for name in first)


def test_evaluation_on_two_ranks_counts_every_image_once(root: Path) -> None:
    two = json.loads((root / "two.json").read_text())
    assert two == score(root, "one.json")
    assert two["dusk"]["images"] == 5 and two["dusk"]["inference"]["mode"] == "slide"


def test_masks_are_normalised_by_their_mean_number_over_ranks(root: Path) -> None:
    ours = [json.loads((root / f"mask-{rank}.json").read_text()) for rank in (0, 1)]
    alone, masks = [mask_loss(rank) for rank in (0, 1)], (8, 1)
    assert ours == pytest.approx([a * n / 4.5 for a, n in zip(alone, masks, strict=True)], rel=1e-5)


def test_ranks_share_the_statistics_of_a_convolutional_encoder(root: Path) -> None:
    """After a step, the first layer's running mean is that of the whole batch on one rank."""
    config = options(root, "alone", *("zero2", *CNN))
    segmenter = stage2.build_segmenter(config, 4).train()
    train = open_training_set(config)
    stream = TrainStream(train, config.size(), config.augment, 0, segmenter.fill, 1, order_of(config, train))
    (whole,) = stream.batches(micro=4, accumulation=1, rank=0, world=1)(0, 1)
    segmenter(whole)
    tensors = load_file(root / "convolutional/backbone.safetensors")
    own = segmenter.backbone.net.state_dict()
    first = next(name for name in own if name.endswith("running_mean"))
    assert own[first].abs().max() > 1e-3
    torch.testing.assert_close(tensors[first], own[first], rtol=1e-4, atol=1e-6)
