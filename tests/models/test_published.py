"""Checkpoints as projects publish them load as what they are: the same weights as timm's own file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from gkd_scale.errors import ModelError
from gkd_scale.models import weights
from gkd_scale.models.tensor_files import StateDict

_VIT = {"depth": 1, "embed_dim": 48, "num_heads": 3}
_SWIN = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
_CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
_ONE = torch.ones(3)


def under(prefix: str, state: StateDict, add: float = 0) -> StateDict:
    return {prefix + name: value + add if add else value for name, value in state.items()}


def facebook_convnext(state: StateDict) -> StateDict:
    tensors = {}
    for name, value in state.items():
        for old, new in (
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
            (r"conv_dw", "dwconv"),
            (r"mlp\.fc", "pwconv"),
            (r"head\.(norm|fc)", lambda match: "norm" if match[1] == "norm" else "head"),
        ):
            name = re.sub(old, new, name)
        tensors[f"model.{name}"] = value
    return tensors


def microsoft_swin(state: StateDict) -> StateDict:
    earlier = re.compile(r"^layers\.(\d)\.downsample")
    tensors = {
        earlier.sub(lambda match: f"layers.{int(match[1]) - 1}.downsample", name).replace(
            "head.fc.", "head."
        ): value
        for name, value in state.items()
    }
    tensors["layers.0.blocks.0.attn_mask"] = torch.zeros(4, 49, 49)
    tensors["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return under("model.", tensors)


def openai_clip(state: StateDict) -> StateDict:
    text = {
        f"{name}.weight": _ONE for name in ("token_embedding", "ln_final", "transformer.resblocks.0.ln_1")
    }
    tensors: StateDict = {"logit_scale": torch.ones(()), "visual.proj": torch.ones(48, 8), **text}
    for name, value in state.items():
        for old, new in (
            (r"^blocks\.", "transformer.resblocks."),
            (r"attn\.qkv\.", "attn.in_proj_"),
            (r"attn\.proj", "attn.out_proj"),
            (r"mlp\.fc1", "mlp.c_fc"),
            (r"mlp\.fc2", "mlp.c_proj"),
            (r"^norm_pre", "ln_pre"),
            (r"^norm\.", "ln_post."),
            (r"norm(\d)", r"ln_\1"),
            (r"^patch_embed\.proj", "conv1"),
            (r"^cls_token", "class_embedding"),
            (r"^pos_embed", "positional_embedding"),
        ):
            name = re.sub(old, new, name)
        flat = {"class_embedding": value.flatten(), "positional_embedding": value[0]}.get(name, value)
        if not name.startswith("head"):
            tensors[f"visual.{name}"] = flat
    return tensors


RELEASES: dict[str, tuple[str, dict[str, Any], Callable[[StateDict], StateDict]]] = {
    "timm, with its classifier": ("convnext_atto", _CONVNEXT, lambda state: state),
    "ConvNeXt": ("convnext_atto", {**_CONVNEXT, "conv_mlp": False}, facebook_convnext),
    "Swin": ("swin_tiny_patch4_window7_224", _SWIN, microsoft_swin),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", _VIT, lambda state: under("model.", state)),
    "DeiT III": (
        "deit3_small_patch16_224",
        _VIT,
        lambda state: {re.sub(r"ls([12])\.gamma", r"gamma_\1", name): v for name, v in state.items()},
    ),
    "MAE": (
        "vit_base_patch16_224.mae",
        _VIT,
        lambda state: under("model.", {**state, "mask_token": _ONE, "decoder_embed.weight": _ONE}),
    ),
    "MoCo": (
        "resnet10t",
        {},
        lambda state: {
            **under("state_dict.module.encoder_k.", state, add=1),
            **under("state_dict.module.encoder_q.", state),
            "state_dict.module.queue": _ONE,
        },
    ),
    "I-JEPA": (
        "vit_huge_patch14_224",
        _VIT,
        lambda state: {
            **under("target_encoder.module.", state, add=1),
            **under("encoder.module.", state),
            "predictor.module.norm.weight": _ONE,
        },
    ),
    "CLIP": ("vit_base_patch16_clip_224.openai", _VIT, openai_clip),
    "OpenCLIP of timm": (
        "vit_base_patch16_siglip_224",
        _VIT,
        lambda state: {**under("visual.trunk.", state), "text.norm.weight": _ONE, "logit_bias": _ONE},
    ),
    "mmsegmentation": (
        "swin_tiny_patch4_window7_224",
        _SWIN,
        lambda state: {**under("state_dict.backbone.", state), "state_dict.decode_head.conv.weight": _ONE},
    ),
    "averaged by torch": (
        "vit_tiny_patch16_224",
        _VIT,
        lambda state: {**under("module.", state), "n_averaged": torch.ones(())},
    ),
    "EVA02": ("eva02_tiny_patch14_224.mim_in22k", _VIT, lambda state: {**state, "rope.freqs_cos": _ONE}),
    "BEiT": (
        "beit_base_patch16_224",
        _VIT,
        lambda state: {**under("model.", state), "model.blocks.0.attn.relative_position_index": _ONE.long()},
    ),
    "EfficientViT-M": ("efficientvit_m0", {}, lambda state: state),
    "MobileNet": ("mobilenetv3_small_050", {}, lambda state: under("model.", state)),
}


@pytest.mark.parametrize("project", RELEASES)
def test_published_checkpoints_load(project: str) -> None:
    name, args, publish = RELEASES[project]
    whole = timm.create_model(name, **args)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    expected, net = (timm.create_model(name, num_classes=0, **args) for _ in range(2))
    expected.load_state_dict(whole.state_dict(), strict=False)
    weights.load_into(net, publish(dict(whole.state_dict())), "published.pth")
    assert weights.fingerprint(net) == weights.fingerprint(expected)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("vit_tiny_patch16_224", {**_VIT, "init_values": 1e-5}, _VIT),
        ("vit_tiny_patch16_224", {**_VIT, "reg_tokens": 2}, _VIT),
        ("vit_tiny_patch16_224", {**_VIT, "depth": 3}, _VIT),
        ("vit_tiny_patch16_224", {**_VIT, "qk_norm": True}, _VIT),
        ("vit_tiny_patch16_224", _VIT, {**_VIT, "qkv_bias": False}),
        ("vit_tiny_patch16_224", _VIT, {**_VIT, "pos_embed": "none"}),
        ("vit_tiny_patch16_224", {**_VIT, "pre_norm": True}, _VIT),
        ("swin_tiny_patch4_window7_224", {**_SWIN, "depths": (2, 2, 1, 1)}, _SWIN),
        ("convnext_atto", {**_CONVNEXT, "depths": (1, 1, 2, 1)}, _CONVNEXT),
        ("convnextv2_atto", {**_CONVNEXT, "ls_init_value": 1e-6}, _CONVNEXT),
        ("resnet10t", {"layers": (1, 1, 2, 1)}, {}),
        ("resnet10t", {"block_args": {"attn_layer": "se"}}, {}),
    ],
)
def test_parts_that_would_be_left_out_are_refused(
    name: str, args: dict[str, Any], options: dict[str, Any]
) -> None:
    whole = timm.create_model(name, **args)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    net = timm.create_model(name, num_classes=0, **options)
    with pytest.raises(ModelError, match=r"holds|lacks"):
        weights.load_into(net, whole.state_dict(), "w.pth")
