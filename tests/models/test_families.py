"""Every family of students: it learns at a size that is not its own, and plain timm takes what it learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from gkd_scale.distill.config import published
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.errors import ModelError
from gkd_scale.models import backbone, families
from gkd_scale.models.backbone import load_backbone
from gkd_scale.models.masking import masked_positions, random_mask
from gkd_scale.models.students import Student, load_student
from gkd_scale.models.weights import load_into
from gkd_scale.types import Batch, Features
from tests.models.families import FAMILIES, Family

GRID, WIDTH = (5, 6), 12
"""The teacher's: a grid that no student has."""


def load(family: Family) -> Student:
    torch.manual_seed(0)
    return load_student(family.name, family.size, GRID, args=dict(family.args))


def batch(family: Family, count: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(3)
    tokens = GRID[0] * GRID[1]
    return Batch(
        pixels=torch.randint(0, 256, (count, 3, *family.size), dtype=torch.uint8, generator=draw),
        teacher=Features(
            torch.randn(count, WIDTH, generator=draw).half(),
            torch.randn(count, tokens, WIDTH, generator=draw).half(),
        ),
        sids=tuple(f"{i:016x}" for i in range(count)),
        epochs=(0,) * count,
        positions=tuple(range(count)),
    )


@pytest.mark.parametrize("key", FAMILIES)
def test_three_steps_then_plain_timm_gives_the_same_features(key: str, tmp_path: Path) -> None:
    family = FAMILIES[key]
    student = load(family)
    distiller = Distiller(student, TeacherSpace(WIDTH, GRID)).train()
    before = {name: value.clone() for name, value in student.net.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in distiller.parameters() if p.requires_grad), 1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = distiller(distiller.draws.add(batch(family)))["loss"]
        loss.backward()
        gaps = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
        assert not gaps, "what no gradient reaches is frozen"
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    names = {name for name, value in student.net.named_parameters() if not torch.equal(value, before[name])}
    assert names == {name for name, value in student.net.named_parameters() if value.requires_grad}

    backbone.export(tmp_path, student.spec, student.net.state_dict())
    plain = timm.create_model(family.name, num_classes=0, **family.args).eval()
    plain.load_state_dict(load_file(tmp_path / backbone.WEIGHTS_FILE))
    side = family.args.get("img_size", plain.pretrained_cfg["input_size"][1])
    x = torch.randn(1, 3, side, side)
    student.eval()
    with torch.no_grad():
        expected, features = plain.forward_features(x), student.net.forward_features(x)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("key", FAMILIES)
def test_features_masks_and_maps(key: str) -> None:
    family = FAMILIES[key]
    student = load(family).eval()
    pixels = batch(family, 2).pixels
    with torch.no_grad():
        cls, patches = student(pixels)
        mask = torch.zeros(2, student.mask_tokens, dtype=torch.bool)
        mask[0, ::2] = True
        masked = student(pixels, mask).patches
        again = student(pixels).patches
        maps = load_backbone(None, family.name, dict(family.args)).eval()(pixels)
    assert patches.shape == (2, student.grid[0] * student.grid[1], student.dim)
    assert torch.allclose(cls, patches.mean(1), atol=1e-5) != family.cls
    assert not torch.allclose(masked[0], patches[0])
    torch.testing.assert_close(masked[1], patches[1])
    torch.testing.assert_close(again, patches)
    rows = [feature_map.shape[2] for feature_map in maps]
    assert len(maps) == 4 and rows == [max(1, round(rows[0] / 2**i)) for i in range(4)]
    assert 0.75 <= rows[0] / (family.size[0] / 4) <= 1.25


@pytest.mark.parametrize("key", FAMILIES)
def test_sharing_the_unmasked_half_equals_two_full_passes(key: str) -> None:
    """Also in training, but for BatchNorm, whose statistics mix the images of a pass."""
    family = FAMILIES[key]
    loss, qsd = published()
    distiller = Distiller(load(family), TeacherSpace(WIDTH, GRID), loss=loss, qsd=qsd).train(
        not family.batchnorm
    )
    one, student = batch(family), distiller.student
    mask = torch.zeros(len(one.sids), student.mask_tokens, dtype=torch.bool)
    for row in masked_positions(one.positions, 0.5):
        mask[row] = random_mask(one.sids[row], one.epochs[row], 0, student.mask_tokens, 0.5)
    half = distiller(distiller.draws.add(one))["loss"]
    teacher = Features(*(each.float() for each in one.teacher))
    plain, masked = distiller.features(one.pixels), distiller.features(one.pixels, mask)
    full = distiller.heads[0].losses(plain, masked.patches, teacher)["loss"]
    torch.testing.assert_close(half, full, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("key", ["vit", "dinov2-registers", "dinov3", "eva02", "eva02-at-16"])
def test_at_another_size_it_is_what_timm_builds_for_that_size(key: str) -> None:
    """Position embeddings and rotary ones are resampled on the fly as timm resamples them when it loads."""
    family = FAMILIES[key]
    student = load(family).eval()
    args = {**family.args, "img_size": family.size, "dynamic_img_size": False}
    plain = timm.create_model(family.name, num_classes=0, **args).eval()
    load_into(plain, student.net.state_dict(), "the student")
    x = torch.randn(1, 3, *family.size)
    with torch.no_grad():
        torch.testing.assert_close(student.net.forward_features(x), plain.forward_features(x))


def test_a_norm_that_timm_leaves_to_the_head_is_applied_to_every_token() -> None:
    expected = {"vit": None, "vit-gap": "fc_norm", "eva02": "fc_norm", "convnext": "head.norm", "swin": None}
    assert {key: families.final_norm(load(FAMILIES[key]).net) for key in expected} == expected
    student = load(FAMILIES["eva02"]).eval()
    patches = student(batch(FAMILIES["eva02"]).pixels).patches
    torch.testing.assert_close(patches.mean(-1), torch.zeros(patches.shape[:2]), atol=1e-5, rtol=0)


def test_drop_path_is_off_unless_it_is_asked_for() -> None:
    """timm's Swin has it by default."""
    family = FAMILIES["swin"]
    pixels = batch(family).pixels
    calm = load(family).train()
    assert torch.equal(calm(pixels).patches, calm(pixels).patches)
    args = dict(family.args)
    wild = load_student(family.name, family.size, GRID, args=args, drop_path=0.5).train()
    assert not torch.equal(wild(pixels).patches, wild(pixels).patches)
    with pytest.raises(ModelError, match="drop_path_rate"):
        load_student("efficientvit_b0", (64, 96), (4, 6), drop_path=0.1)


@pytest.mark.parametrize(
    ("name", "size", "args", "grid", "message"),
    [
        ("vit_tiny_patch16_224", (40, 48), {}, (2, 3), "whole number"),
        ("resnet10t", (64, 64), {}, (16, 16), "more than 4 times coarser"),
        ("vit_tiny_patch16_224", (96, 96), {"patch_size": 4, "img_size": 96}, (4, 4), "times finer"),
        ("cait_xxs24_224", (64, 64), {}, (4, 4), "does not take 64x64 images"),
        ("levit_128s", (224, 224), {}, (14, 14), "levit_128s"),
        (
            "mvitv2_tiny",
            (224, 224),
            {},
            (14, 14),
            "mvitv2_tiny: .*neither tokens of a grid nor a feature map",
        ),
    ],
)
def test_what_cannot_match_is_refused(
    name: str, size: tuple[int, int], args: dict[str, object], grid: tuple[int, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_student(name, size, grid, args=args)
