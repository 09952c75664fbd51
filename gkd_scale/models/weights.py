"""Loads weights into networks, and drops nothing silently.

``tensor_files.py`` reads a file, ``layouts.py`` finds the network in it, ``belonging.py`` decides whether it
belongs to the model.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale import console
from gkd_scale.errors import ModelError
from gkd_scale.models import belonging, layouts
from gkd_scale.models import spec as specs
from gkd_scale.models.layouts import KERNEL
from gkd_scale.models.spec import ModelSpec
from gkd_scale.models.tensor_files import StateDict, read_state_dict

__all__ = ["RESIZES", "StateDict", "fingerprint", "load_downloaded", "load_into", "read_state_dict"]

RESIZES = ("pi", "bicubic")
"""How a patch embedding gets another patch size.

``pi``: by the pseudo-inverse of bilinear resizing, so that embeddings of resized patches stay what they were
(FlexiViT, arXiv 2212.08013, equation 4; timm computes it with bicubic resizing). ``bicubic``: the kernel is
resized as if it were an image, as the reference implementation of GKD does; embeddings grow with the
number of pixels.
"""


def load_into(
    model: nn.Module,
    state: StateDict,
    source: Path | str,
    *,
    resize: str = "pi",
    image_size: int | Sequence[int] | None = None,
) -> None:
    """Load a timm model's part of ``state``, patch and position embeddings resampled if sizes differ.

    ``resize`` is one of ``RESIZES``; ``image_size`` is the one that the state was built for, if it is known:
    nothing else tells a grid of positions that is not square. Names may have any prefix, and those of
    transformers' vision transformers are known (``layouts.py``). Every parameter of ``model`` must be there,
    float and finite. Other tensors of a backbone are refused, but not those of heads, decoders and the like.
    Values are cast to the model's dtype. Raises ModelError naming what is wrong.
    """
    if image_size is not None:
        timm_model: Any = model
        timm_model.pretrained_model_args = {"img_size": image_size}
    model_state = dict(model.state_dict())

    def convert(part: StateDict) -> StateDict:
        slots = part if image_size is not None else _slots(model, model_state, part)
        return _convert(model, model_state, slots, resize)

    try:
        match = layouts.find(model_state, state, convert)
        belonging.require(model, model_state, match, source)
        if match.failure is not None:
            raise match.failure
        if image_size is None:
            _require_known_grid(model, match.raw.get("pos_embed"), match.state.get("pos_embed"))
        model.load_state_dict(match.state, strict=False)
    except ModelError as error:
        has_source = str(source) in error.message
        raise error if has_source else ModelError(f"{source}: {error.message}", error.hint) from None
    except Exception as error:
        raise ModelError(
            f"{source} does not fit {type(model).__name__}: {' '.join(str(error).split())[:300]}",
            belonging.CHECK_NAME,
        ) from None
    belonging.require_plausible(model_state, match.state, source)
    if match.equals and os.environ.get("RANK", "0") == "0":
        others = ", ".join(map(belonging.place, match.equals))
        console.err.print(f"{source}: {belonging.place(match.prefix)} is taken, not {others}", markup=False)


def _convert(model: nn.Module, model_state: StateDict, part: StateDict, resize: str) -> StateDict:
    """``part`` with the model's names and sizes; ValueError for what would be reshaped into nonsense."""
    for name in (item for item in model_state if item in part):
        value, like = part[name], model_state[name]
        kernel_differs = name == KERNEL and (value.ndim != like.ndim or len(value) != len(like))
        widths_differ = value.ndim != like.ndim or value.shape[-1:] != like.shape[-1:]
        if kernel_differs or ("pos_embed" in name and like.ndim == 3 and widths_differ):
            actual, expected = belonging.shape(value), belonging.shape(like)
            raise ValueError(f"{name} is {actual}, and the model's is {expected}")
    if "register_tokens" in part:
        part = {"mask_token": torch.zeros(()), **part}  # by which timm knows the names of DINOv2
    state = layouts.timm_filter(model, part)
    if resize == "bicubic" and KERNEL in model_state and KERNEL in part:
        state = {**state, KERNEL: _bicubic(part[KERNEL], model)}
    return state


def _slots(model: Any, model_state: StateDict, part: StateDict) -> StateDict:
    """``part`` with as many position embeddings beside those of the patches as the model has.

    A model that adds none to its class token gets that token with its embedding. How many a file has is known
    only if its patches make a square: ModelError for what may have one for the class token or none. DINOv2's
    registers are left to timm.
    """
    pos, cls, slots = part.get("pos_embed"), part.get("cls_token"), getattr(model, "num_prefix_tokens", 0)
    slots = 0 if getattr(model, "no_embed_class", False) else slots
    if pos is None or cls is None or pos.ndim != 3 or "register_tokens" in part:
        return part
    n = pos.shape[1]
    fits = "pos_embed" not in model_state or n == model_state["pos_embed"].shape[1] or _is_square(n - slots)
    if fits or cls.shape != (1, 1, pos.shape[2]):
        return part
    if slots == 0 and _is_square(n - 1):
        return {**part, "cls_token": cls + pos[:, :1], "pos_embed": pos[:, 1:]}
    if slots == 1 and _is_square(n):
        side = math.isqrt(n)
        raise ModelError(
            f"its {n} position embeddings may be of {side}x{side} patches, or of {n - 1} and the class token",
            "if they are of the patches alone: --teacher-args no_embed_class=True (--student-args of a "
            "student); else give img_size=[H, W] of their images there",
        )
    raise ModelError(f"its {n} position embeddings are of no square grid", _GRID)


_GRID = (
    "say for which images they were made: --teacher-args 'img_size=[H, W]'; for a student, leave img_size "
    "out if those were squares"
)


def _require_known_grid(model: Any, raw: Tensor | None, new: Tensor | None) -> None:
    """ModelError if positions that were not resampled, for a grid that is no square, may be a square's."""
    if raw is None or new is None:
        return
    rows, columns = getattr(getattr(model, "patch_embed", None), "grid_size", (1, 1))
    n, side = rows * columns, math.isqrt(rows * columns)
    if rows != columns and _is_square(n) and raw.ndim == 3 and torch.equal(raw, new):
        raise ModelError(
            f"its {n} position embeddings may be of {side}x{side} patches or of {rows}x{columns}", _GRID
        )


def _is_square(number: int) -> bool:
    return number > 1 and math.isqrt(number) ** 2 == number


def load_downloaded(model: nn.Module, spec: ModelSpec, resize: str) -> None:
    """Load timm's weights of ``spec``, downloaded at their own sizes, as :func:`load_into` does."""
    whole = specs.create(replace(spec, args=spec.fixed_args()), pretrained=True)
    load_into(model, whole.state_dict(), spec.name, resize=resize)


def _bicubic(kernel: Tensor, model: nn.Module) -> Tensor:
    """A patch embedding's kernel (C, 3, p, p) at the patch size of ``model``."""
    size = model.get_parameter(KERNEL).shape[-2:]
    if kernel.shape[-2:] == size:
        return kernel
    return F.interpolate(kernel.float(), size=tuple(size), mode="bicubic", align_corners=False)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of a model's tensors: equal weights, equal fingerprint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()
