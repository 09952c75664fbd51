"""Names of models elsewhere as timm's."""

from __future__ import annotations

import pytest
import timm

from gkd_scale.models.names import suggest, timm_name

NAMES = timm.list_models()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("facebook/dinov2-small", "vit_small_patch14_dinov2.lvd142m"),
        ("facebook/dinov2-with-registers-giant", "vit_giant_patch14_reg4_dinov2.lvd142m"),
        ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "vit_small_patch16_dinov3.lvd1689m"),
        ("facebook/dino-vitb8", "vit_base_patch8_224.dino"),
        ("facebook/vit-mae-huge", "vit_huge_patch14_224.mae"),
        ("google/vit-base-patch16-224-in21k", "vit_base_patch16_224"),
        ("google/siglip-base-patch16-224", "vit_base_patch16_siglip_224"),
        ("openai/clip-vit-large-patch14-336", "vit_large_patch14_clip_336"),
        ("microsoft/swinv2-tiny-patch4-window8-256", "swinv2_tiny_window8_256"),
        ("microsoft/resnet-50", "resnet50"),
        ("facebook/convnextv2-tiny-1k-224", "convnextv2_tiny"),
        ("nvidia/C-RADIOv3-B", "vit_base_patch16_radio_v3"),
        ("timm/vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_dinov2.lvd142m"),
        ("hf-hub:timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
    ],
)
def test_names_of_the_hub_are_timms(name: str, expected: str) -> None:
    assert timm_name(name, NAMES) == expected
    assert f"did you mean '{expected}'?" in suggest(name, NAMES)


def test_no_other_model_is_suggested_for_one_that_timm_lacks() -> None:
    assert timm_name("some/thing-small", NAMES) == ""
    assert suggest("some/thing-small", NAMES).startswith("names are timm's")
    assert suggest("some/thing-small", NAMES).endswith("hf:some/thing-small")
    assert "hf:timm" not in suggest("timm/vit_small_patch14_dinov2.lvd142m", NAMES)
    assert "--teacher-weights" in suggest("w/model.safetensors", NAMES)
    assert suggest("vit_smal_patch16_224", NAMES) == "did you mean 'vit_small_patch16_224'?"
