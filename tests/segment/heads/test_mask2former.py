"""The Mask2Former head: its size, its losses, how it is scored, and what its library would get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gkd_scale.errors import ConfigError
from gkd_scale.models.backbone import load_backbone
from gkd_scale.segment.datasets.registry import open_dataset
from gkd_scale.segment.heads.mask2former import NO_OBJECT, Mask2FormerHead
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.inference import prepare
from gkd_scale.types import IGNORE

from ..support import Blocks, pyramid, tiny_backbone  # noqa: TID252

CHANNELS = (6, 8, 10, 12)
SIZE = (32, 48)
TINY: dict[str, Any] = {"size": "small", "width": 32, "queries": 8, "points": 256, "decoder_layers": 2}


def tiny(classes: int = 4) -> Mask2FormerHead:
    head = build_head("mask2former", CHANNELS, classes, TINY)
    assert isinstance(head, Mask2FormerHead)
    return head


def labels(images: int = 2) -> torch.Tensor:
    return torch.stack([torch.from_numpy(each.label) for each in Blocks(images, [SIZE]).samples])


def losses(head: Mask2FormerHead, truth: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    features = [each.to(next(head.parameters()).dtype) for each in pyramid(CHANNELS, SIZE, len(truth))]
    return head.losses(features, truth)


@pytest.mark.parametrize(
    ("student", "millions"), [("vit_small_patch16_224", 41.9), ("vit_base_patch16_224", 106.7)]
)
def test_the_papers_decoder_has_the_papers_size(student: str, millions: float) -> None:
    with torch.device("meta"):
        backbone = load_backbone(None, student, {"img_size": 512})
        head = Mask2FormerHead(backbone.channels, 19)
    count = sum(each.numel() for module in (backbone, head) for each in module.parameters())
    assert round(count / 1e6, 1) == millions


def test_nothing_is_left_uninitialised() -> None:
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        head = tiny()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(each).all() for each in head.parameters())
    assert 0.7 < head.decoder.pixel_decoder.level_embed.std() < 1.3


def test_the_loss_is_the_sum_of_its_weighted_parts() -> None:
    terms = losses(tiny(), labels())
    assert set(terms) == {"loss", "cross_entropy", "mask", "dice"}
    torch.testing.assert_close(terms["loss"], terms["cross_entropy"] + terms["mask"] + terms["dice"])


def test_the_cross_entropy_counts_queries_without_an_object_a_tenth() -> None:
    head, nothing = tiny(), torch.full((2, *SIZE), IGNORE, dtype=torch.uint8)
    some = torch.zeros(2, *SIZE, dtype=torch.uint8)
    with torch.no_grad():  # every query says class 0 with one certain logit, whatever it sees
        head.decoder.class_predictor.weight.zero_()
        head.decoder.class_predictor.bias.copy_(torch.tensor([3.0, 0, 0, 0, 0]))
    right, wrong = (-torch.tensor([3.0, 0, 0, 0, 0]).log_softmax(0)[index] for index in (0, -1))
    layers, queries = TINY["decoder_layers"] + 1, TINY["queries"]
    torch.testing.assert_close(losses(head, nothing)["cross_entropy"], 2 * layers * wrong)
    one = (right + (queries - 1) * NO_OBJECT * wrong) / (1 + (queries - 1) * NO_OBJECT)
    torch.testing.assert_close(losses(head, some)["cross_entropy"], 2 * layers * one)


def test_points_are_drawn_from_torchs_seed() -> None:
    head, truth = tiny(), labels()
    first, again, other = (losses(head, truth, seed)["mask"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_images_and_batches_without_a_labelled_pixel() -> None:
    head, truth = tiny(), labels()
    truth[0] = IGNORE
    half = losses(head, truth)
    half["loss"].backward()
    assert all(torch.isfinite(each.grad).all() for each in head.parameters())
    truth[1] = IGNORE
    none = losses(head, truth)
    none["loss"].backward()
    assert half["mask"] > 0 and none["mask"] == 0 and none["dice"] == 0
    assert all(torch.isfinite(each.grad).all() for each in head.parameters())


def test_in_half_precision_the_loss_is_computed_in_float32() -> None:
    half = tiny().bfloat16()
    full = tiny()
    full.load_state_dict(half.state_dict())
    ours, theirs = losses(half, labels()), losses(full, labels())
    ours["loss"].backward()
    for name, value in ours.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, theirs[name], rtol=0.05, atol=0)


def test_the_loss_keeps_nothing_in_the_state() -> None:
    assert all(name.startswith("decoder.") for name, _ in tiny().named_parameters())
    assert set(tiny().state_dict()) == {name for name, _ in tiny().named_parameters()}


def test_scores_are_class_probabilities_times_masks_at_the_size_asked_for() -> None:
    head = tiny()
    features = pyramid(CHANNELS, SIZE)
    with torch.no_grad():
        scores = head(features, (40, 56))
        masks, classes = head.decoder(features)[-1]
    expected = torch.zeros(2, 4, 40, 56)
    for image in range(2):
        for query in range(TINY["queries"]):
            mask = F.interpolate(masks[None, None, image, query], (40, 56), mode="bilinear")[0, 0].sigmoid()
            for each in range(4):
                expected[image, each] += classes[image, query].softmax(0)[each] * mask
    torch.testing.assert_close(scores, expected)


def test_the_loss_falls_on_eight_real_images(shared: Path) -> None:
    dataset = open_dataset(f"camvid:{shared / 'camvid/source_day'}")
    samples = [dataset[index] for index in range(0, 8 * 30, 30)]
    pixels = torch.stack([prepare(each.image, (48, 64)) for each in samples])
    truth = torch.stack([torch.from_numpy(each.label[4::8, 4::8].copy()) for each in samples])
    backbone = tiny_backbone().eval()
    with torch.no_grad():
        features = backbone(pixels)
    head = build_head("mask2former", backbone.channels, len(dataset.classes), TINY)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    history = []
    for step in range(30):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = head.losses(features, truth)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.75 * history[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"size": "huge"}, "known are paper and small"),
        ({"width": 50}, "cannot be built"),
        ({"query": 5}, "did you mean 'queries'"),
    ],
)
def test_mistakes(args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_head("mask2former", CHANNELS, 4, args)


def test_a_sure_head_costs_a_method_little() -> None:
    """log of the share: a class that all queries claim has a cross-entropy near 0, as logits would."""
    head = tiny()
    sure = torch.zeros(1, 4, 2, 3)
    sure[:, 2] = 1
    head.forward = lambda *_: sure  # type: ignore[method-assign]
    logits = head.class_logits([], (2, 3))
    assert F.cross_entropy(logits, torch.full((1, 2, 3), 2)) < 0.01
    sure.zero_()
    assert torch.allclose(head.class_logits([], (2, 3)).softmax(1), torch.full((1, 4, 2, 3), 0.25))
