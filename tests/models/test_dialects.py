"""Weights under the names of other projects are the same network: tokens of theirs, weights of timm's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers

from gkd_scale.errors import ModelError
from gkd_scale.models import families, weights
from gkd_scale.models.tensor_files import StateDict

_TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 14, "img_size": 56}
_STAGES: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
_SMALL = "vit_small_patch14_dinov2.lvd142m"


def shake(net: torch.nn.Module) -> torch.nn.Module:
    """``net`` with other values in every parameter, also in those that begin as 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.eval().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def translate(state: StateDict, table: tuple[tuple[str, str], ...], prefix: str = "") -> StateDict:
    """``state`` under other names, for tests that play another project."""
    tensors = {}
    for name, value in state.items():
        for old, new in table:
            name = re.sub(old, new, name)
        tensors[prefix + name] = value
    return tensors


MMSEG = (
    (r"^norm\.", "ln1."),
    (r"^blocks\.(\d+)\.norm(\d)", r"layers.\1.ln\2"),
    (r"^blocks\.", "layers."),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"attn\.qkv\.", "attn.attn.in_proj_"),
    (r"attn\.proj", "attn.attn.out_proj"),
    (r"mlp\.fc1", "ffn.layers.0.0"),
    (r"mlp\.fc2", "ffn.layers.1"),
    (r"ls1\.gamma", "attn.gamma1.weight"),
    (r"ls2\.gamma", "ffn.gamma2.weight"),
)
MMPRETRAIN = (*MMSEG, (r"attn\.attn\.in_proj_", "attn.qkv."), (r"attn\.attn\.out_proj", "attn.proj"))
MM_SWIGLU = ((r"mlp\.fc1", "ffn.w12"), (r"mlp\.fc2", "ffn.w3"), *MMPRETRAIN)
MM_CONVNEXT = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
    (r"conv_dw", "depthwise_conv"),
    (r"mlp\.fc", "pointwise_conv"),
    (r"mlp\.grn", "grn"),
    (r"head\.norm", "norm3"),
)


@pytest.mark.parametrize(
    ("name", "args", "table"),
    [
        ("vit_tiny_patch16_224", _TINY, MMSEG),
        ("vit_small_patch14_dinov2", _TINY, MMSEG),
        ("vit_small_patch14_dinov2", _TINY, MMPRETRAIN),
        ("vit_giant_patch14_dinov2", _TINY, MM_SWIGLU),
        ("convnext_atto", {**_STAGES, "conv_mlp": False}, MM_CONVNEXT),
        ("convnextv2_atto", {**_STAGES, "conv_mlp": False}, MM_CONVNEXT),
    ],
)
def test_names_of_mmseg_and_mmpretrain(name: str, args: dict[str, Any], table: Any) -> None:
    source = shake(timm.create_model(name, num_classes=0, **args))
    state = {
        f"state_dict.{key}": value
        for key, value in translate(dict(source.state_dict()), table, "backbone.").items()
    }
    state["state_dict.decode_head.conv_seg.weight"] = torch.ones(3)
    if "convnext" in name:
        state["state_dict.backbone.norm0.weight"] = torch.ones(8)
    net = timm.create_model(name, num_classes=0, **args)
    weights.load_into(net, state, "mm.pth")
    assert weights.fingerprint(net) == weights.fingerprint(source)


META_DINOV3 = (
    (r"^reg_token", "storage_tokens"),
    (r"gamma_([12])$", r"ls\1.gamma"),
    (r"mlp\.fc1_g", "mlp.w1"),
    (r"mlp\.fc1_x", "mlp.w2"),
)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3"])
def test_names_of_metas_dinov3(name: str) -> None:
    args: dict[str, Any] = {"depth": 2, "embed_dim": 96, "num_heads": 3}
    source = shake(timm.create_model(name, num_classes=0, **args))
    more = ((r"mlp\.fc2", "mlp.w3"),) if "plus" in name else ()
    state = translate(dict(source.state_dict()), (*META_DINOV3, *more))
    blocks = [f"blocks.{index}.attn.qkv" for index in range(2)]
    state |= {f"{block}.bias": torch.zeros(288) for block in blocks}
    state |= {f"{block}.bias_mask": torch.ones(288) for block in blocks}
    state |= {"mask_token": torch.zeros(1, 96), "rope_embed.periods": torch.ones(8)}
    net = timm.create_model(name, num_classes=0, **args)
    weights.load_into(net, state, "dinov3.pth")
    assert weights.fingerprint(net) == weights.fingerprint(source)


def _theirs(kind: str) -> tuple[torch.nn.Module, str, dict[str, Any]]:
    """A network of transformers, timm's name and arguments of the same."""
    t = transformers
    stages: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
    swin: dict[str, Any] = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    models: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "ConvNeXt": (t.ConvNextModel(t.ConvNextConfig(**stages)), "convnext_tiny", _STAGES),
        "ConvNeXt with 1x1 convolutions": (
            t.ConvNextModel(t.ConvNextConfig(**stages)),
            "convnext_atto",
            _STAGES,
        ),
        "ConvNeXtV2": (t.ConvNextV2Model(t.ConvNextV2Config(**stages)), "convnextv2_tiny", _STAGES),
        "DINOv3 ConvNeXt": (
            t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(**stages)),
            "convnext_tiny.dinov3_lvd1689m",
            _STAGES,
        ),
        "Swin": (
            t.SwinModel(t.SwinConfig(**swin, image_size=64)),
            "swin_tiny_patch4_window7_224",
            {**swin, "img_size": 64},
        ),
    }
    return models[kind]


@pytest.mark.parametrize(
    "kind", ["ConvNeXt", "ConvNeXt with 1x1 convolutions", "ConvNeXtV2", "DINOv3 ConvNeXt", "Swin"]
)
def test_staged_networks_of_transformers_give_the_same_tokens(kind: str) -> None:
    theirs, name, args = _theirs(kind)
    shake(theirs)
    ours = timm.create_model(name, num_classes=0, **args).eval()
    weights.load_into(ours, dict(theirs.state_dict()), "model.safetensors")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = theirs(pixels).last_hidden_state
        tokens = out.flatten(2).transpose(1, 2) if out.ndim == 4 else out
        patches = families.dense(ours, pixels)[0].patches
        if kind.startswith("ConvNeXt"):  # they normalise what they pool; we normalise every token
            tokens = theirs.get_submodule("layernorm")(tokens)
    torch.testing.assert_close(patches, tokens[:, -patches.shape[1] :], atol=1e-4, rtol=1e-4)


def test_position_embeddings_with_and_without_a_slot_for_the_class_token() -> None:
    with_slot, without, again = (
        shake(timm.create_model("vit_tiny_patch16_224", num_classes=0, no_embed_class=free, **_TINY))
        for free in (False, True, True)
    )
    pixels = torch.randn(1, 3, 56, 56)
    for source, net in ((with_slot, without), (without, again)):
        weights.load_into(net, dict(source.state_dict()), "w.pth")
        with torch.no_grad():
            expected = source.forward_features(pixels)  # type: ignore[operator]
            torch.testing.assert_close(net.forward_features(pixels), expected)  # type: ignore[operator]


def test_position_embeddings_of_two_readings_are_refused() -> None:
    """A square number: of 4x4 patches alone, or of 3x5 and the class token."""
    source, net = (
        timm.create_model("vit_tiny_patch16_224", num_classes=0, no_embed_class=free, **_TINY)
        for free in (True, False)
    )
    with pytest.raises(ModelError, match=r"may be of 4x4 patches, or of 15 and the class token") as error:
        weights.load_into(net, dict(source.state_dict()), "w.pth")
    assert "no_embed_class=True" in error.value.hint


@pytest.mark.parametrize(
    ("config", "name", "route"),
    [
        (transformers.CLIPVisionConfig, "vit_base_patch16_clip_224", "hf:FOLDER"),
        (transformers.SiglipVisionConfig, "vit_base_patch16_siglip_224", "hf:FOLDER"),
        (transformers.BeitConfig, "beit_base_patch16_224", "hf:FOLDER"),
    ],
)
def test_other_networks_of_transformers_are_sent_to_the_door_that_works(
    config: Any, name: str, route: str
) -> None:
    small = config(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96)
    state = dict(transformers.AutoModel.from_config(small).state_dict())
    net = timm.create_model(name, num_classes=0, embed_dim=48, depth=1, num_heads=3)
    with pytest.raises(ModelError) as error:
        weights.load_into(net, state, "model.safetensors")
    assert route in error.value.hint


def test_swin_of_mmseg_is_sent_elsewhere() -> None:
    args: dict[str, Any] = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    net = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **args)
    theirs = translate(
        dict(net.state_dict()), ((r"attn\.", "attn.w_msa."), (r"^layers", "stages")), "backbone."
    )
    with pytest.raises(ModelError) as error:
        weights.load_into(net, theirs, "mm.pth")
    assert "Microsoft" in error.value.hint


def metas(state: StateDict) -> StateDict:
    """DINOv2 as Meta publishes it: timm's names, and a mask token."""
    return {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def hugging_faces(state: StateDict) -> StateDict:
    """DINOv2 as transformers 4 and 5 save it."""
    table = (
        (r"^cls_token", "embeddings.cls_token"),
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^norm\.", "layernorm."),
        (r"^blocks\.", "encoder.layer."),
        (r"attn\.proj", "attention.output.dense"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
    )
    tensors = {}
    for name, value in translate(state, table).items():
        if "attn.qkv" not in name:
            tensors[name] = value
            continue
        for part, chunk in zip(("query", "key", "value"), value.chunk(3), strict=True):
            tensors[name.replace("attn.qkv", f"attention.attention.{part}")] = chunk
    tensors["embeddings.mask_token"] = torch.zeros(1, state["cls_token"].shape[-1])
    return tensors


DOORS: dict[str, Callable[[StateDict], StateDict]] = {
    "Meta": metas,
    "transformers": hugging_faces,
    "mmseg": lambda state: translate(state, MMSEG, "state_dict.backbone."),
}


@pytest.fixture(scope="module")
def release(shared: Path) -> StateDict:
    return weights.read_state_dict(shared / "teacher/dinov2_vits14_timm_fp16.safetensors")


def small(state: StateDict, source: str) -> torch.nn.Module:
    net = timm.create_model(_SMALL, num_classes=0, img_size=(56, 84)).eval()
    weights.load_into(net, dict(state), source)
    return net


@pytest.mark.parametrize("door", DOORS)
def test_real_dinov2_weights_are_the_same_through_every_door(door: str, release: StateDict) -> None:
    ours, theirs = small(release, "timm"), small(DOORS[door](release), door)
    assert weights.fingerprint(theirs) == weights.fingerprint(ours)
