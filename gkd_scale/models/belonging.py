"""Whether the weights found in a file belong to a network: all its tensors, and nothing that it would drop.

Tensors of a backbone for which the model has no place (LayerScale, registers, more blocks) and quantised
values would give other features than those that the weights were trained for: both are refused. Parts that
no dense feature depends on may stay unused: heads, decoders, mask tokens, other networks of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.errors import ModelError
from gkd_scale.models import dialects, layouts
from gkd_scale.models.layouts import Network
from gkd_scale.models.tensor_files import StateDict, index_of

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that a float parameter may be loaded from."""

CHECK_NAME = "check the model's name and arguments against those the weights were made with"

# Parts that no dense feature depends on, by the first segment of their names, whatever the model.
_OUTPUTS = re.compile(
    r"head|heads|head_dist|head_drop|fc|fc_norm|classifier|mask_token|masked_embed|attn_pool|pre_logits"
)
# Likewise, but only if the model has nothing of that name.
_OTHER_PARTS = re.compile(
    r".*(head|decoder|classifier|queue|predictor|projector|prototype|loss|mask_token|token_embedding)s?(_.*)?"
    r"|proj|projection|pooler|neck|last_layer|last_linear|logits?|logit_(scale|bias)|temperature|center"
    r"|criterion|aux.*|text.*|lm_.*|transformer|ln_final|positional_embedding|norms|local_cls_norm|teacher.*"
    r"|student.*|optimizer.*|optim|scheduler.*|scaler|discriminator|n_averaged|dino_.*|ibot_.*|ema.*"
    r"|momentum_.*|(global_)?steps?|epochs?|iter(ation)?s?|best.*|seed|.*rng.*|args|config|cfg|meta|version"
    r"|hyper_parameters|(pixel_)?(mean|std)|normali[sz].*|contrast.*|mlp|.*_(proj|mlp|fc|logits)|linear"
    r"|pred.*|output(?!.*norm).*|cls_(?!.*(token|norm|pos|embed)).*|bbox.*|rpn.*|roi_.*|seg_.*|arcface.*|margin.*",
    re.IGNORECASE,
)
# Buffers that timm computes itself, anywhere in a name; those of rotary embeddings if the model has them.
_BUFFERS = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|bias_mask"
    r"|position_ids|attention_bias_idxs|rel_pos_idx|total_ops|total_params|n_averaged)$"
)
_ROTARY = re.compile(r"(^|\.)(rope|rotary)[^.]*(\.[^.]+)?$")
# Parts of names that mark a scale or zero point of quantised weights.
_SCALE = re.compile(
    r"[._]?(?<![^._])(scales?(_inv)?|zero_points?|q?zeros|qweight|g_idx|absmax|quant_(map|state)|scb|amax)"
    r"(?![^.])",
    re.IGNORECASE,
)

# Words in prefixes of tensors that are no weights: differences of weights, or statistics about them.
_NO_NETWORK = {
    *("delta", "deltas", "diff", "fisher", "gradient", "hessian"),
    *("momentum_buffer", "mu", "nu", "velocity"),
}
_FAINT = 0.1
"""The largest scale of a network's norms is never below this; differences of weights, and moments, are."""

_MERGE = "merge the adapters into the weights and save them anew"
_JOIN = "join the parts that ZeRO-3 or FSDP saved (DeepSpeed: zero_to_fp32.py), and give what comes of it"
_THEMSELVES = "give the file of the weights themselves"
_FLOAT_WEIGHTS = "give the weights in float32, float16 or bfloat16, not quantised"
_OTHER_MODEL = "name the model that they were made with, with its arguments"
# A model's name brings the mean and std of its pixels along; an argument alone does not.
_ARGUMENT = (
    "name the model that they were made with, or give the argument {} (--teacher-args, --student-args) and "
    "the mean and std that they were trained with"
)
# Tensors without a place: a pattern of their names, what they are, and the next step.
_KINDS = (
    (r"lora_|\.base_layer\.", "LoRA adapters", _MERGE),
    (r"(\.ls[12]\.gamma|\.gamma_[12])$", "LayerScale", _ARGUMENT.format("init_values=1e-5")),
    (r"\.(q_norm|k_norm)\.", "norms of queries and keys", _ARGUMENT.format("qk_norm=true")),
    (r"^(reg_token|register_tokens|storage_tokens)$", "registers", _OTHER_MODEL),
    (r"^cls_token$", "a class token", _OTHER_MODEL),
    (r"^dist_token$", "a distillation token", _OTHER_MODEL),
    (r"pos_embed", "a position embedding", _OTHER_MODEL),
    (r"bias$", "biases", _OTHER_MODEL),
)


def require(model: nn.Module, model_state: StateDict, network: Network, source: Path | str) -> None:
    """ModelError if ``network`` lacks tensors of the model, or holds some that the model would drop."""
    _refuse_scales(model_state, network, source)
    _refuse_shards(model_state, network.state, source)
    _refuse_incomplete(model_state, network, source)
    if network.rivals:
        raise ModelError(
            f"{source} holds two networks that fit and differ, {place(network.prefix)} and "
            f"{place(network.rivals[0])}",
            "save the one that is meant as a file of its own",
        )
    if words := set(network.prefix.lower().split(".")) & _NO_NETWORK:
        raise ModelError(f"{source} holds '{min(words)}' of a network, not its weights", _THEMSELVES)
    _refuse_types(model_state, network.state, source)
    _refuse_unplaced(model, model_state, network, source)
    if network.failure is None:
        _refuse_shapes(model, model_state, network.state, source)


def require_plausible(model_state: StateDict, names: Iterable[str], source: Path | str) -> None:
    """ModelError for loaded values of ``model_state`` that no trained network has; one sum a tensor.

    These are NaN and infinity, matrices of zeros, negative variances, and norms that silence every channel.
    """
    matrices, silent, scales = 0, [], []
    for name in names:
        value = model_state.get(name)
        if value is None or not value.is_floating_point():
            continue
        total = float(value.sum())
        # if all are finite, the sum alone was too large
        if not math.isfinite(total) and (bad := value.numel() - int(torch.isfinite(value).sum())):
            raise ModelError(
                f"{source} holds NaN or infinite values: {bad} of {value.numel()} in {name}",
                "the weights are damaged, or their training diverged: give others",
            )
        if name.endswith("running_var") and bool((value < 0).any()):
            raise ModelError(f"{source} holds negative variances in {name}", _THEMSELVES)
        if value.ndim > 1 and name.endswith("weight"):
            matrices += 1
            silent += [name] * (total == 0 and not bool(value.any()))
        elif value.ndim == 1 and name.endswith("weight"):
            scales.append(float(value.abs().amax()))
    if silent:
        what = f"{len(silent)} of {matrices} matrices in {source} are zero ({brief(silent)})"
        raise ModelError(
            f"all weights in {source} are zero" if len(silent) == matrices else what,
            "it was saved before its weights were there (a shard, a meta device), or its download was not "
            "finished: give another file",
        )
    if scales and max(scales) < _FAINT:
        raise ModelError(
            f"every norm in {source} scales by less than {_FAINT:g}: it holds differences from other "
            "weights, or an optimizer's moments",
            _THEMSELVES,
        )


def leftovers(model: nn.Module, model_state: StateDict, network: Network) -> list[str]:
    """Names of tensors of a backbone that are in ``network`` and for which ``model`` has no place.

    Heads, decoders, mask tokens and other parts that no dense feature depends on are not among them, nor
    copies of the network, buffers that timm computes itself, and biases of zeros.
    """
    tops = {name.split(".")[0] for name in model_state}
    copies = tuple(prefix.removeprefix(network.prefix) for prefix in network.copies)
    outputs = _classifiers(model)
    rotary = any("rope" in name for name, _ in model.named_modules())
    addresses = {value.data_ptr() for name, value in network.state.items() if name in model_state}

    def stray(name: str, tensor: Tensor) -> bool:
        top = name.split(".")[0]
        if _OUTPUTS.fullmatch(top) or (top not in tops and _OTHER_PARTS.fullmatch(top)):
            return False
        if is_buffer(name) or (rotary and _ROTARY.search(name)) or name.startswith(outputs + copies):
            return False
        zeros = name.endswith("bias") and tensor.dtype in FLOATS and not tensor.count_nonzero()
        return bool(tensor.numel()) and not zeros

    names = [name for name, value in network.state.items() if name not in model_state and stray(name, value)]
    # What timm's code left out, if it is a part of the network by its name.
    names += [
        name
        for name, value in network.raw.items()
        if name not in network.state
        and name not in model_state
        and name.split(".")[0] in tops
        and value.data_ptr() not in addresses
        and stray(name, value)
    ]
    return sorted(names, key=_natural)


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is a buffer that the network computes itself."""
    return _BUFFERS.search(name) is not None


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the model's classifier, if timm names one."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _refuse_shards(model_state: StateDict, state: StateDict, source: Path | str) -> None:
    """ModelError for empty tensors: the rank that saved them holds other parts of the network."""
    empty = [
        name for name, p in model_state.items() if p.numel() and name in state and not state[name].numel()
    ]
    if empty:
        raise ModelError(f"{source} holds {len(empty)} empty tensors: {brief(empty)}", _JOIN)


def _refuse_incomplete(model_state: StateDict, network: Network, source: Path | str) -> None:
    """ModelError if tensors are missing; it also names those without a place."""
    names = [name for name in model_state if not name.endswith("num_batches_tracked")]
    missing = [name for name in names if name not in network.state]
    if not missing:
        return
    index = index_of(Path(source))
    if index is not None:
        raise ModelError(
            f"{source} is one part of several and lacks {len(missing)} of the model's tensors",
            f"give {index}, with all parts beside it",
        )
    if any("lora_" in name or ".base_layer." in name for name in network.raw):
        raise ModelError(f"{source} holds LoRA adapters, not merged into the weights", _MERGE)
    depth, shallower = _depth(model_state), _depth(network.state)
    if shallower and all(_depth([name]) > shallower for name in missing):
        raise ModelError(
            f"{source} holds {shallower} blocks, and the model has {depth}",
            _ARGUMENT.format(f"depth={shallower}"),
        )
    present = [*network.raw, *network.outside]
    if all(map(layouts.of_an_optimizer, present)):
        raise ModelError(f"{source} holds an optimizer's state alone", _THEMSELVES)
    hint = dialects.elsewhere(present) or CHECK_NAME
    if len(missing) == len(names):
        raise ModelError(
            f"{source} holds none of the model's {len(names)} tensors: it has {brief(present)}; "
            f"wanted are {brief(names)}",
            hint,
        )
    others = [name for name in network.state if name not in model_state and not _OUTPUTS.match(name)]
    beside = f"; without a place are {brief(others)}" if others else ""
    raise ModelError(
        f"{source} lacks {len(missing)} of the model's {len(names)} tensors: {brief(missing)}{beside}",
        hint,
    )


def _refuse_unplaced(model: nn.Module, model_state: StateDict, network: Network, source: Path | str) -> None:
    """ModelError if a part of the backbone would be left out; says what it is."""
    names = leftovers(model, model_state, network)
    if not names:
        return
    depth, deeper = _depth(model_state), _depth(names)
    if depth and deeper > depth:
        raise ModelError(
            f"{source} holds {deeper} blocks, and the model has {depth}: {brief(names)} would be left out",
            _ARGUMENT.format(f"depth={deeper}"),
        )
    kinds = (kind for kind in _KINDS if all(re.search(kind[0], name) for name in names))
    _, what, hint = next(kinds, ("", f"{len(names)} tensors", _OTHER_MODEL))
    raise ModelError(
        f"{source} holds {what} for which {type(model).__name__} as asked has no place: {brief(names)}", hint
    )


def _refuse_scales(model_state: StateDict, network: Network, source: Path | str) -> None:
    """ModelError for scales of quantised weights, beside the network's tensors or elsewhere in the file."""
    modules = {name.rpartition(".")[0] for name in model_state} - {""}
    inside = [name for name in network.raw if name not in model_state and _SCALE.search(name)]
    outside = [name for name in network.outside if _SCALE.search(name)]
    of_modules = [name for name in inside if _tails(name) & modules]
    of_tensors = [name for name in (*inside, *outside) if _tails(name) & model_state.keys()]
    for name in (*of_modules, *of_tensors):
        raise ModelError(f"{source} holds quantised weights: {name} is a part of that", _FLOAT_WEIGHTS)


def _tails(name: str) -> set[str]:
    """Names that a scale of this name may belong to: its ends, without the words for a scale."""
    parts = [part for part in (_SCALE.sub("", part) for part in name.split(".")) if part]
    return {".".join(parts[start:]) for start in range(len(parts))}


def _refuse_types(model_state: StateDict, state: StateDict, source: Path | str) -> None:
    """ModelError if a float parameter would get integers, 8-bit or complex numbers."""
    for name, parameter in model_state.items():
        value = state.get(name)
        if value is None:
            continue
        dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        is_integer = not parameter.is_floating_point() and not value.is_complex()
        if dense and (value.dtype in FLOATS or is_integer):
            continue
        what = str(value.dtype).removeprefix("torch.")
        raise ModelError(
            f"{source} holds {name} as {what if dense else 'a tensor without plain values'}, and the model "
            "wants floats",
            _FLOAT_WEIGHTS,
        )


def _refuse_shapes(model: nn.Module, model_state: StateDict, state: StateDict, source: Path | str) -> None:
    wrong = [
        name
        for name, value in model_state.items()
        if name in state and state[name].shape != value.shape and (value.ndim or state[name].numel() != 1)
    ]
    if wrong:
        name = wrong[0]
        others = f", and {len(wrong) - 1} others differ too" if len(wrong) > 1 else ""
        raise ModelError(
            f"{source} does not fit {type(model).__name__}: {name} is {shape(state[name])}, and the model's "
            f"is {shape(model_state[name])}{others}",
            CHECK_NAME,
        )


def _depth(names: Iterable[str]) -> int:
    """The number of blocks of a plain transformer that has tensors of these names; 0 for other networks."""
    numbers = [int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.(?!\d+\.)", name))]
    return max(numbers, default=-1) + 1


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts block 2 before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def brief(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def shape(tensor: Tensor) -> str:
    """A tensor's shape, for a message."""
    return "x".join(map(str, tensor.shape)) or "one number"


def place(prefix: str) -> str:
    """The place of a network in a file, for a message."""
    return f"'{prefix.rstrip('.')}'" if prefix else "the one without a prefix"
