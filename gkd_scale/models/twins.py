"""Students from transformers: their twin in timm, and the way back.

A student needs masking, feature levels, layer decay and the rest that timm gives. So ``hf:FOLDER`` becomes
timm's network of the same architecture with the folder's weights; one image checks that both compute the
same. The exported backbone keeps the config, and ``export --format transformers`` writes a folder of that
family.

========================  =====================================  ======================================
model_type                timm                                   what differs
========================  =====================================  ======================================
vit, deit                 vit_tiny_patch16_224, deit_tiny_…      nothing
dinov2, …_with_registers  vit_small_patch14_dinov2, …_reg4_…     the position of the class token
dinov3_vit                vit_small_patch16_dinov3_qkvb, …plus…  the keys' bias, which is 0
convnext, convnextv2      convnext_tiny, convnextv2_tiny         nothing
dinov3_convnext           convnext_tiny                          nothing
========================  =====================================  ======================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ViTImageProcessor

from gkd_scale.errors import ModelError
from gkd_scale.models import checkpoints, dialects, families, hf
from gkd_scale.models.checkpoints import Checkpoint
from gkd_scale.models.spec import ModelSpec, Triple
from gkd_scale.models.tensor_files import StateDict
from gkd_scale.types import Size

_SAME = 1e-3
"""The largest difference of a token between the two networks, as a share of the largest value."""


def _ratio(inner: int, width: int) -> float:
    """An ``mlp_ratio`` by which timm gets exactly ``inner``."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width


def _plain(config: Any, inner: int) -> dict[str, Any]:
    return {
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": _ratio(inner, config.hidden_size),
        "patch_size": config.patch_size,
        "img_size": config.image_size,
    }


def _vit(config: Any) -> tuple[str, dict[str, Any]]:
    name = "deit_tiny_distilled_patch16_224" if config.model_type == "deit" else "vit_tiny_patch16_224"
    return name, {**_plain(config, config.intermediate_size), "qkv_bias": config.qkv_bias}


def _dinov2(config: Any) -> tuple[str, dict[str, Any]]:
    inner = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:
        inner = 2 * ((int(inner * 2 / 3) + 7) // 8 * 8)
    size = "giant" if config.use_swiglu_ffn else "small"
    registers = getattr(config, "num_register_tokens", 0)
    name = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    extra = {"reg_tokens": registers} if registers else {}
    return name, {**_plain(config, inner), **extra, "qkv_bias": config.qkv_bias}


def _dinov3(config: Any) -> tuple[str, dict[str, Any]]:
    suffix = "_qkvb" if config.query_bias or config.value_bias else ""
    name = f"vit_small_{'plus_' if config.use_gated_mlp else ''}patch16_dinov3{suffix}"
    return name, {**_plain(config, config.intermediate_size), "num_reg_tokens": config.num_register_tokens}


def _convnext(config: Any) -> tuple[str, dict[str, Any]]:
    version = "v2" if config.model_type == "convnextv2" else ""
    return f"convnext{version}_tiny", {"depths": list(config.depths), "dims": list(config.hidden_sizes)}


_TWINS: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    "vit": _vit,
    "deit": _vit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
    "convnext": _convnext,
    "convnextv2": _convnext,
    "dinov3_convnext": _convnext,
}


def resolve(
    reference: str, args: Mapping[str, Any], mean: Triple | None = None, std: Triple | None = None
) -> tuple[ModelSpec, Path]:
    """timm's network for ``hf:FOLDER`` or ``hf:OWNER/NAME`` with ``args``, and the weights; ModelError."""
    checkpoint = checkpoints.open_checkpoint(reference)
    config = checkpoint.config
    if config.model_type not in _TWINS or getattr(config, "num_channels", 3) != 3:
        raise ModelError(
            f"{checkpoint.place} holds a {config.model_type}, which can be a teacher but no student",
            f"of transformers, students are {', '.join(_TWINS)}; any timm name works",
        )
    name, twin_args = _TWINS[config.model_type](config)
    mean, std = checkpoints.pixel_stats(checkpoint, mean, std)
    origin = {"model_type": config.model_type, **hf.facts(config)}
    spec = ModelSpec(name, {**twin_args, **args}, mean, std, origin)
    return spec, checkpoints.weights_file(checkpoint)


def check(reference: str, net: nn.Module, spec: ModelSpec) -> None:
    """ModelError unless ``net``, the twin with its weights, gives the patches and the CLS of the original."""
    checkpoint = checkpoints.open_checkpoint(reference)
    theirs = checkpoints.load_net(checkpoint)
    side = spec.args.get("img_size", 64)
    height, width = (side, side) if isinstance(side, int) else side
    pixels = torch.linspace(-1, 1, 3 * height * width).sin().view(1, 3, height, width)
    with torch.no_grad():
        expected, _ = hf.dense(theirs, checkpoint.config, pixels)
        training = net.training
        actual, _ = families.dense(net.eval(), families.as_input(net, pixels))
        net.train(training)
    pairs = [(actual.patches, expected.patches)]
    if families.is_tokens(net):  # of a map, timm has no CLS: it is the mean of the patches
        pairs.append((actual.cls, expected.cls))
    largest = max(float((ours - original).abs().max() / original.abs().max()) for ours, original in pairs)
    if not largest <= _SAME:
        raise ModelError(
            f"{checkpoint.place} and timm's {spec.name} give other tokens (by {largest:.2g} of the largest)",
            "its config.json asks for what timm does not compute: give a timm name instead",
        )


def write(folder: Path, net: nn.Module, spec: ModelSpec, image_size: Size) -> None:
    """The network as a folder of its own family, which plain ``AutoModel`` reads.

    ModelError if transformers would resample position embeddings for ``image_size`` otherwise than timm does.
    """
    config = AutoConfig.for_model(**(spec.origin or {}))
    state = dict(net.state_dict())
    if spec.args.get("patch_size") is not None:
        config.patch_size = families.patch_size(net)[0]
    if "pos_embed" in state:
        state["pos_embed"] = _positions(net, state["pos_embed"], image_size)
        config.image_size = image_size[0]
    with torch.random.fork_rng(devices=[]), checkpoints.quiet():
        theirs: Any = AutoModel.from_config(config)
        checkpoints.drop_pooler(theirs)
        theirs.load_state_dict(back(state, dict(theirs.state_dict())))
        theirs.save_pretrained(folder)
        height, width = image_size
        size = {"height": height, "width": width}
        ViTImageProcessor(size=size, image_mean=spec.mean, image_std=spec.std).save_pretrained(folder)


def _positions(net: Any, embeddings: Tensor, image_size: Size) -> Tensor:
    """Position embeddings for ``image_size``, resampled as timm does it for each image."""
    rows, columns = (side // patch for side, patch in zip(image_size, families.patch_size(net), strict=True))
    if image_size[0] != image_size[1]:
        raise ModelError(
            f"timm and transformers resample position embeddings for {image_size[0]}x{image_size[1]} images "
            "in different ways: only squares come out equal",
            "export it for a square (--image-size N), or as --format timm",
        )
    slots = 0 if getattr(net, "no_embed_class", False) else int(net.num_prefix_tokens)
    return resample_abs_pos_embed(embeddings, [rows, columns], num_prefix_tokens=slots)


def back(state: StateDict, target_state: StateDict) -> StateDict:
    """The tensors of ``target_state``, a transformers network's, from timm's ``state``: inverse of loading.

    What timm drops because no feature depends on it (mask tokens, the bias of keys) is 0.
    """
    names = dialects.new_names(target_state, state)
    return {name: _tensor(names.get(name, name), value, state) for name, value in target_state.items()}


def _tensor(name: str, like: Tensor, state: StateDict) -> Tensor:
    """The tensor that timm calls ``name``, in the shape of ``like``."""
    name = _TIMM_NAMES.get(name, name)
    name = name if name in state else name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
    if name == "pos_embed" and state[name].shape[1] < like.shape[1]:
        slots = like.shape[1] - state[name].shape[1]
        return torch.cat([torch.zeros_like(like[:, :slots]), state[name]], 1)
    if name in state:
        return state[name].reshape(like.shape)
    for pattern, whole, parts in dialects.JOINS:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        matrix = state.get(f"{match['before']}.{whole}.{match['kind']}")
        if matrix is not None:
            return matrix.chunk(len(parts))[parts.index(match["part"])].reshape(like.shape)
        bias = state.get(f"{match['before']}.{match['part']}_{match['kind']}")  # EVA's q_bias, v_bias
        if bias is not None:
            return bias.reshape(like.shape)
    if not like.numel() or name == "mask_token" or name.endswith((".q.bias", ".k.bias", ".v.bias")):
        return torch.zeros_like(like)
    raise ModelError(f"the student has no tensor for {name}", "export it as --format timm")


_TIMM_NAMES = {"storage_tokens": "reg_token", "register_tokens": "reg_token"}


def load(folder: Path) -> tuple[Checkpoint, nn.Module]:
    """What :func:`write` wrote, as plain transformers loads it."""
    checkpoint = checkpoints.open_checkpoint(str(folder))
    return checkpoint, checkpoints.load_net(checkpoint)
