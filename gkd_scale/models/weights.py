"""Weights from files: safetensors, or ``torch.load(weights_only=True)``; nothing that can run code."""

from __future__ import annotations

import hashlib
import pickle
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.errors import ModelError
from gkd_scale.models import spec as specs
from gkd_scale.models.spec import ModelSpec

StateDict = dict[str, Tensor]

RESIZES = ("pi", "bicubic")
"""How a patch embedding gets another patch size.

``pi``: by the pseudo-inverse of bilinear resizing, so that embeddings of resized patches stay what they were
(FlexiViT, arXiv 2212.08013, equation 4; timm computes it with bicubic resizing). ``bicubic``: the kernel is
resized as if it were an image, as the reference implementation of GKD does; embeddings grow with the
number of pixels.
"""

_KERNEL = "patch_embed.proj.weight"

# Where checkpoints of other projects keep the network, and what they put before its keys.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "student", "encoder")
_PREFIXES = ("module.", "backbone.", "model.", "encoder.", "student.", "teacher.")


def read_state_dict(path: Path) -> StateDict:
    """Tensors by name from ``.safetensors``, ``.pth``, ``.pt`` or ``.bin``; raises ModelError."""
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}", "check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds more than tensors, and loading it could run code",
            "convert it to safetensors where you trust it, then give that file",
        ) from None
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as weights: {error}", "give a safetensors or .pth file"
        ) from None
    return _unwrap(loaded, path)


def _unwrap(loaded: object, path: Path) -> StateDict:
    while isinstance(loaded, dict):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict):
        raise ModelError(f"{path} holds a {type(loaded).__name__}, not a state dict", "give a state dict")
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no tensors", "give a state dict")
    return tensors


def load_into(
    model: nn.Module,
    state: StateDict,
    source: Path | str,
    *,
    resize: str = "pi",
    image_size: int | Sequence[int] | None = None,
) -> None:
    """Load ``state`` into a timm model, resampling patch and position embeddings where sizes differ.

    ``resize`` is one of ``RESIZES``; ``image_size`` is what the state was built for, where it is known: a
    grid of positions that is not square can be told by nothing else. Every parameter of ``model`` must be
    there; more (a classifier, a head) may be. Values are cast to the model's dtype. Raises ModelError naming
    what is missing or has another shape.
    """
    state = _strip_prefix(model, state)
    kernel = state.get(_KERNEL)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if image_size is not None:
        timm_reads: Any = model
        timm_reads.pretrained_model_args = {"img_size": image_size}
    try:
        if convert is not None:
            state = convert(state, model)
        if kernel is not None and resize == "bicubic":
            state = {**state, _KERNEL: _bicubic(kernel, model)}
        result = model.load_state_dict(state, strict=False)
    except Exception as error:
        raise ModelError(
            f"{source} does not fit {type(model).__name__}: {' '.join(str(error).split())[:300]}",
            "check the model's name and arguments against those the weights were made with",
        ) from None
    if result.missing_keys:
        shown = ", ".join(result.missing_keys[:4])
        raise ModelError(
            f"{source} lacks {len(result.missing_keys)} of the model's tensors: {shown} …",
            "check the model's name and arguments against those the weights were made with",
        )


def load_downloaded(model: nn.Module, spec: ModelSpec, resize: str) -> None:
    """Load timm's weights of ``spec``, downloaded at their own sizes, as :func:`load_into` does."""
    whole = specs.create(replace(spec, args=spec.fixed()), pretrained=True)
    load_into(model, whole.state_dict(), spec.name, resize=resize)


def _bicubic(kernel: Tensor, model: nn.Module) -> Tensor:
    """A patch embedding's kernel (C, 3, p, p) at the patch size of ``model``."""
    size = model.get_parameter(_KERNEL).shape[-2:]
    if kernel.shape[-2:] == size:
        return kernel
    return F.interpolate(kernel.float(), size=tuple(size), mode="bicubic", align_corners=False)


def _strip_prefix(model: nn.Module, state: StateDict) -> StateDict:
    wanted = set(model.state_dict())
    if wanted & set(state):
        return state
    for prefix in _PREFIXES:
        stripped = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if wanted & set(stripped):
            return stripped
    return state


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a model's tensors: equal weights, equal fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()
