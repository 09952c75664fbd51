"""How other projects name the tensors of networks that timm has too, as tables.

::

    project                 networks                                   told by
    transformers            ViT, DeiT, MAE, DINOv2, DINOv3             embeddings.patch_embeddings.
    transformers            ConvNeXt, ConvNeXtV2, DINOv3 ConvNeXt      stages.0.layers.0.
    transformers            Swin                                       layers.0.blocks.0.attention.
    mmseg, mmpretrain       ViT, DINOv2                                layers.0.ln1.
    mmseg, mmpretrain       ConvNeXt, ConvNeXtV2                       stages.0.0.depthwise_conv.

Names become timm's, or those that timm's own code for the family knows. A word of a table stands at the
beginning of a name or after a dot, so that any prefix may come before it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from gkd_scale.models.tensor_files import StateDict

_Table = tuple[tuple[str, str], ...]

_ATTENTION: _Table = (
    (r"attention\.(?:attention\.|self\.)?(?:query|q_proj)\.", "attn.q."),
    (r"attention\.(?:attention\.|self\.)?(?:key|k_proj)\.", "attn.k."),
    (r"attention\.(?:attention\.|self\.)?(?:value|v_proj)\.", "attn.v."),
    (r"attention\.(?:self|relative_position_bias)\.(?=relative_position)", "attn."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)


class Dialect(NamedTuple):
    """``marker`` is a pattern of this dialect's names alone; ``table`` holds patterns and replacements."""

    marker: str
    table: _Table


SWIN = Dialect(
    r"encoder\.layers\.0\.blocks\.0\.attention\.",
    (
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"embeddings\.norm\.", "patch_embed.norm."),
        (r"encoder\.(?=layers\.)", ""),
        *_ATTENTION,
        (r"layernorm\.", "norm."),
    ),
)
CONVNEXT = Dialect(
    r"stages\.0\.layers\.0\.(dwconv|depthwise_conv)\.",
    (
        (r"embeddings\.patch_embeddings\.", "stem.0."),
        (r"embeddings\.layernorm\.", "stem.1."),
        (r"(?:encoder\.|model\.)?stages\.0\.downsample_layers\.", "stem."),
        (r"(?:encoder\.|model\.)?(?=stages\.)", ""),
        (r"(?:downsampling_layer|downsample_layers)\.", "downsample."),
        (r"layers\.(?=\d+\.)", "blocks."),
        (r"(?:dwconv|depthwise_conv)\.", "conv_dw."),
        (r"(?:pwconv|pointwise_conv)([12])\.", r"mlp.fc\1."),
        (r"layer_scale_parameter$", "gamma"),
        (r"grn\.", "mlp.grn."),
        (r"(?<=\d\.)layer_?norm\.", "norm."),
        (r"layer_?norm\.", "head.norm."),
    ),
)
MM_CONVNEXT = Dialect(
    r"stages\.0\.0\.depthwise_conv\.",
    (
        (r"depthwise_conv\.", "dwconv."),
        (r"pointwise_conv([12])\.", r"pwconv\1."),
        (r"norm3\.", "norm."),
        (r"norm([012])\.", r"norms.\1."),
        (r"grn\.weight$", "grn.gamma"),
        (r"grn\.bias$", "grn.beta"),
    ),
)
MM_VIT = Dialect(
    r"layers\.0\.ln1\.",
    (
        (r"patch_embed\.projection\.", "patch_embed.proj."),
        (r"attn\.gamma1\.weight$", "ls1.gamma"),
        (r"ffn\.gamma2\.weight$", "ls2.gamma"),
        (r"attn\.attn\.in_proj_(weight|bias)$", r"attn.qkv.\1"),
        (r"attn\.(?:attn\.)?out_proj\.", "attn.proj."),
        (r"ffn\.(?:layers\.0\.0|w12)\.", "mlp.fc1."),
        (r"ffn\.(?:layers\.1|w3)\.", "mlp.fc2."),
        (r"(?<=\d\.)ln([12])\.", r"norm\1."),
        (r"ln1\.", "norm."),
        (r"ln2\.", "fc_norm."),
        (r"ln_pre\.", "norm_pre."),
        (r"layers\.(?=\d+\.)", "blocks."),
    ),
)
VIT = Dialect(
    r"embeddings\.patch_embeddings\.",
    (
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"embeddings\.distillation_token$", "dist_token"),
        (r"embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
        (r"embeddings\.(?=(?:cls|mask|register)_tokens?$)", ""),
        (r"(?:(?:encoder|model)\.)?layers?\.(?=\d+\.)", "blocks."),
        *_ATTENTION,
        (r"layer_scale([12])\.lambda1$", r"ls\1.gamma"),
        (r"layernorm\.", "norm."),
        (r"mlp\.weights_in\.", "mlp.fc1."),
        (r"mlp\.(?:weights_out|down_proj)\.", "mlp.fc2."),
    ),
)
DIALECTS = (SWIN, CONVNEXT, MM_CONVNEXT, MM_VIT, VIT)
"""In the order in which they are tried."""

_GATED: _Table = ((r"mlp\.gate_proj\.", "mlp.fc1_g."), (r"mlp\.up_proj\.", "mlp.fc1_x."))
_PLAIN: _Table = ((r"mlp\.up_proj\.", "mlp.fc1."),)

JOINS = (
    (re.compile(r"(?P<before>.*attn)\.(?P<part>[qkv])\.(?P<kind>weight|bias)"), "qkv", ("q", "k", "v")),
    (re.compile(r"(?P<before>.*mlp)\.(?P<part>fc1_[gx])\.(?P<kind>weight|bias)"), "fc1", ("fc1_g", "fc1_x")),
)
"""Matrices that timm joins: the pattern of the parts' names, timm's name, the parts in order."""

_ELSEWHERE = (
    (
        re.compile(
            r"(^|\.)(vision_model|vision_encoder)\.|embeddings\.(patch|class)_embedding\.?|\.lambda_1$"
        ),
        "these are names of transformers: give the folder that they lie in, --teacher hf:FOLDER",
    ),
    (
        re.compile(r"\.w_msa\."),
        "mmseg orders the channels of Swin's merged patches otherwise: give the weights that Microsoft "
        "published, or --teacher hf:FOLDER",
    ),
)


def new_names(names: StateDict, model_state: StateDict) -> dict[str, str]:
    """Maps each of ``names`` to timm's name of the tensor, or of its part of a matrix that timm joins.

    Empty for names of timm, and for unknown ones.
    """
    markers = ((dialect, re.compile(rf"(?<![^.]){dialect.marker}")) for dialect in DIALECTS)
    dialect = next((d for d, marker in markers if any(map(marker.search, names))), None)
    if dialect is None:
        return {}
    gated = any("mlp.gate_proj." in name for name in names)
    table = (*dialect.table, *(_GATED if gated else _PLAIN)) if dialect is VIT else dialect.table
    patterns = [(re.compile(rf"(?<![^.]){old}"), new) for old, new in table]
    meta = dialect is VIT and "blocks.0.gamma_1" in model_state  # timm's code for DINOv3 knows Meta's names
    new = {}
    for name in names:
        result = name
        for pattern, replacement in patterns:
            result = pattern.sub(replacement, result)
        new[name] = result.replace("register_tokens", "storage_tokens") if meta else result
    return new


def fit(names: StateDict, model_state: StateDict) -> StateDict:
    """``names`` with parts joined, and ConvNeXt's layers reshaped, as the model has them."""
    names = _join(names, model_state)
    for name, value in names.items():
        like = model_state.get(name[name.find("stages.") :]) if "stages." in name else None
        if like is not None and like.shape != value.shape and like.squeeze().shape == value.squeeze().shape:
            names[name] = value.reshape(like.shape)
    return names


def elsewhere(names: list[str]) -> str:
    """The next step for tensors of a project whose networks do not become timm's; else the empty string."""
    return next((hint for pattern, hint in _ELSEWHERE if any(pattern.search(name) for name in names)), "")


def _join(names: StateDict, model_state: StateDict) -> StateDict:
    """Queries, keys and values, and gated layers, as one matrix if the model has one.

    A bias that only the keys lack is 0.
    """
    suffixes = {".".join(name.split(".")[-2:]) for name in model_state}
    for pattern, whole, order in JOINS:
        parts: dict[str, StateDict] = {}
        for name, value in names.items():
            if match := pattern.fullmatch(name):
                parts.setdefault(f"{match['before']}.{whole}.{match['kind']}", {})[match["part"]] = value
        for name, tensors in parts.items():
            if tensors.keys() == {"q", "v"} and name.endswith(".bias"):
                tensors["k"] = torch.zeros_like(tensors["q"])
            alike = len({(part.dtype, part.shape[1:], part.ndim > 0) for part in tensors.values()}) == 1
            if len(tensors) < len(order) or not alike or f"{whole}.weight" not in suffixes:
                continue
            for part in tensors:
                names.pop(name.replace(f".{whole}.", f".{part}."), None)
            names[name] = torch.cat([tensors[part] for part in order])
    return names
