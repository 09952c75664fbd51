"""Students from transformers: timm's network computes the same, and goes back to the format it came in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from gkd_scale.errors import ModelError
from gkd_scale.models import backbone, checkpoints, families, hf, twins
from gkd_scale.models.students import load_student
from tests.models.transformers_families import MEAN, STD, save, shake

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers

_VIT: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 56,
    "patch_size": 14,
}
_WIDE: dict[str, Any] = {**_VIT, "hidden_size": 96, "image_size": 64, "patch_size": 16}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
TWINS = {
    "ViT": t.ViTConfig(**_VIT),
    "ViT without biases": t.ViTConfig(**_VIT, qkv_bias=False),
    "DeiT": t.DeiTConfig(**_VIT),
    "Dinov2": t.Dinov2Config(**_VIT),
    "Dinov2, gated": t.Dinov2Config(**_VIT, use_swiglu_ffn=True),
    "Dinov2WithRegisters": t.Dinov2WithRegistersConfig(**_VIT, num_register_tokens=3),
    "DINOv3 ViT": t.DINOv3ViTConfig(**_WIDE),
    "DINOv3 ViT, gated, four registers": t.DINOv3ViTConfig(
        **_WIDE, use_gated_mlp=True, hidden_act="silu", num_register_tokens=4
    ),
    "DINOv3 ConvNeXt": t.DINOv3ConvNextConfig(**_STAGES),
    "ConvNeXt": t.ConvNextConfig(**_STAGES),
    "ConvNeXtV2": t.ConvNextV2Config(**_STAGES),
}


def save_model(config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    shake(t.AutoModel.from_config(config)).save_pretrained(folder)
    t.ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", TWINS)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    config = TWINS[kind]
    folder = save_model(config, tmp_path / "model")
    spec, net = backbone.build(f"hf:{folder}", None, None)
    net.eval()
    assert (list(spec.mean), list(spec.std)) == (MEAN, STD)
    side = 56 if config.model_type in ("vit", "deit") or config.model_type.startswith("dinov2") else 64
    twins.write(tmp_path / "back", net, spec, (side, side))
    original, again = (t.AutoModel.from_pretrained(each).eval() for each in (folder, tmp_path / "back"))
    assert type(again) is type(original)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        result, expected = again(x).last_hidden_state, original(x).last_hidden_state
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
        ours = families.dense(net, families.as_input(net, x))[0].patches
        torch.testing.assert_close(
            ours, hf.dense(original, original.config, x)[0].patches, atol=1e-4, rtol=1e-4
        )
    processor = t.AutoImageProcessor.from_pretrained(tmp_path / "back")
    assert (list(processor.image_mean), list(processor.image_std)) == (MEAN, STD)
    assert (processor.size["height"], processor.size["width"]) == (side, side)


def test_positions_are_resampled_for_the_size_that_it_was_trained_at(tmp_path: Path) -> None:
    folder = save_model(TWINS["Dinov2"], tmp_path / "model")
    spec, net = backbone.build(f"hf:{folder}", None, None)
    twins.write(tmp_path / "back", net.eval(), spec, (112, 112))
    again = t.AutoModel.from_pretrained(tmp_path / "back").eval()
    assert again.config.image_size == 112
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        tokens = again(x).last_hidden_state[:, 1:]
        torch.testing.assert_close(tokens, families.dense(net, x)[0].patches, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="56x84 images in different ways"):
        twins.write(tmp_path / "other", net, spec, (56, 84))


def test_the_card_of_a_backbone_keeps_where_it_came_from(tmp_path: Path) -> None:
    folder = save_model(TWINS["ConvNeXt"], tmp_path / "model")
    first = backbone.load_backbone(None, f"hf:{folder}")
    first.save(tmp_path / "run")
    shutil.rmtree(folder)
    again = backbone.load_backbone(tmp_path / "run")
    assert again.spec == first.spec and again.spec.origin is not None
    twins.write(tmp_path / "back", again.net, again.spec, (64, 96))
    assert type(t.AutoModel.from_pretrained(tmp_path / "back")) is t.ConvNextModel


def test_a_student_begins_with_its_weights_and_learns(tmp_path: Path) -> None:
    folder = save_model(TWINS["Dinov2"], tmp_path / "model")
    student = load_student(f"hf:{folder}", (56, 84), (4, 6))
    theirs = checkpoints.load_net(checkpoints.open_checkpoint(f"hf:{folder}"))
    assert torch.equal(student.net.norm.weight, theirs.layernorm.weight)  # type: ignore[union-attr]
    mask = torch.rand(2, 24) < 0.5
    features = student(torch.randint(0, 256, (2, 3, 56, 84)), mask)
    features.patches.sum().backward()
    assert all(p.grad is not None for p in student.net.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["Swin", "SAM", "CLIP", "SigLIP", "BEiT"])
def test_other_families_are_teachers_only(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "model")
    with pytest.raises(ModelError, match="can be a teacher but no student"):
        load_student(f"hf:{folder}", (64, 64), (4, 4))


def test_a_config_that_timm_does_not_compute_is_refused(tmp_path: Path) -> None:
    folder = save_model(t.ViTConfig(**_VIT, hidden_act="relu"), tmp_path / "model")
    with pytest.raises(ModelError, match="give other tokens"):
        backbone.build(f"hf:{folder}", None, None)


@pytest.mark.parametrize("where", ["args", "weights", "run"])
def test_options_of_the_student_do_not_hide_what_timm_does_not_compute(where: str, tmp_path: Path) -> None:
    right, wrong = (
        save_model(t.ViTConfig(**_VIT, hidden_act=act), tmp_path / act) for act in ("gelu", "relu")
    )
    args = {"img_size": 112} if where == "args" else None
    weights = {"args": None, "weights": right / "model.safetensors", "run": tmp_path / "run"}[where]
    backbone.load_backbone(None, f"hf:{right}").save(tmp_path / "run")
    with pytest.raises(ModelError, match="give other tokens"):
        backbone.build(f"hf:{wrong}", args, weights)
    assert backbone.build(f"hf:{right}", args, weights)[0].args["img_size"] == (112 if args else 56)


def test_a_trained_run_may_differ_from_its_origin(tmp_path: Path) -> None:
    folder = save_model(TWINS["ViT"], tmp_path / "model")
    first = backbone.load_backbone(None, f"hf:{folder}")
    shake(first.net)
    first.save(tmp_path / "run")
    again = backbone.load_backbone(tmp_path / "run", f"hf:{folder}")
    assert all(torch.equal(a, b) for a, b in zip(first.net.parameters(), again.net.parameters(), strict=True))


def test_the_cls_token_is_compared(tmp_path: Path) -> None:
    folder = save_model(TWINS["ViT"], tmp_path / "model")
    spec, net = backbone.build(f"hf:{folder}", None, None)
    plain = families.dense

    def other(*arguments: Any) -> Any:
        features, grid = plain(*arguments)
        return features._replace(cls=features.cls + 1), grid

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match="give other tokens"):
        patch.setattr(families, "dense", other)
        twins.check(f"hf:{folder}", net, spec)
