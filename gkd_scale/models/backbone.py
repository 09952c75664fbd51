"""Backbones as files, and as feature pyramids for a segmentation head.

A trained student travels as two files: ``backbone.safetensors``, exactly the state dict of
``timm.create_model(name, num_classes=0, **args)``, and ``backbone.yaml``, which says name and args.
Stage 1 writes them, stage 2 and evaluate read them; any timm model can take their place.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale import files
from gkd_scale.errors import ModelError
from gkd_scale.models import spec as specs
from gkd_scale.models import teachers
from gkd_scale.models import weights as weight_files
from gkd_scale.models.spec import ModelSpec
from gkd_scale.types import Grid, Size

WEIGHTS_FILE = "backbone.safetensors"
CARD_FILE = "backbone.yaml"
STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """A timm network as a pyramid of four feature maps at strides of about 4, 8, 16 and 32.

    A plain transformer gives four of its blocks (a third, a half, two thirds and all of its depth:
    3, 5, 7, 11 of 12), after the final norm, resampled by parameter-free bilinear interpolation; a
    convolutional network gives its own last four levels.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.name = spec.name
        self.mean, self.std = spec.mean, spec.std
        self.normalize = teachers.Normalize(spec.mean, spec.std)
        self.is_tokens = teachers.is_tokens(net)
        levels = len(net.feature_info)  # type: ignore[arg-type]
        if self.is_tokens:
            self.indices = [max(0, round(levels * part) - 1) for part in (1 / 3, 1 / 2, 2 / 3, 1)]
            self.stride = max(teachers.patch_size(net))
            self.channels = (int(net.num_features),) * 4  # type: ignore[arg-type]
        else:
            self.indices = list(range(levels))[-4:]
            # Convolutions take any size; windows of hierarchical transformers want whole patches.
            self.stride = STRIDES[-1] if hasattr(net, "patch_embed") else 1
            widths = [int(net.feature_info[i]["num_chs"]) for i in self.indices]  # type: ignore[index]
            self.channels = (widths[0], widths[1], widths[2], widths[3])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """``pixels`` (B, 3, H, W) 0..255, H and W multiples of ``stride``; four maps (B, C_i, h_i, w_i)."""
        x = self.normalize(pixels).to(teachers.dtype_of(self.net))
        net: Any = self.net
        if not self.is_tokens:
            return list(net.forward_intermediates(x, indices=self.indices, intermediates_only=True))
        wanted = sorted(set(self.indices))
        found = net.forward_intermediates(x, indices=wanted, norm=True, intermediates_only=True)
        maps = [found[wanted.index(index)] for index in self.indices]
        base = 2 ** round(math.log2(self.stride))  # patch 14 counts as 16
        return [_resample(m, base / stride) for m, stride in zip(maps, STRIDES, strict=True)]

    def last_blocks(self, count: int) -> list[str]:
        """Names of the parameters of ``net``'s last ``count`` blocks and of what comes after them.

        Blocks are timm's: transformer blocks, or the residual blocks of a convolutional network. ModelError
        where there are not more than ``count``.
        """
        from timm.models import group_parameters

        net: Any = self.net
        groups = group_parameters(net, net.group_matcher(coarse=False))
        blocks = len(groups) - 1  # the first group is what comes before the blocks
        if count >= blocks:
            raise ModelError(
                f"{self.name} has {blocks} blocks: its last {count} are no part of it",
                "train fewer, or the whole network",
            )
        return [name for group in sorted(groups)[len(groups) - count :] for name in groups[group]]

    def save(self, folder: Path, **facts: Any) -> None:
        """Write ``backbone.safetensors`` and ``backbone.yaml`` to ``folder``."""
        export(folder, self.spec, self.net.state_dict(), **facts)


def _resample(feature_map: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return feature_map
    rows, columns = feature_map.shape[-2:]
    size = (max(1, math.ceil(rows * scale)), max(1, math.ceil(columns * scale)))
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=False)


def export(folder: Path, spec: ModelSpec, state: dict[str, Tensor], **facts: Any) -> None:
    """Write a backbone's two files; ``state`` is the timm model's state dict, ``facts`` go to the card."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().float().contiguous().clone() for name, value in state.items()}
    files.write_bytes(folder / WEIGHTS_FILE, save(tensors))
    call = f"timm.create_model({spec.name!r}, num_classes=0, **args)"
    card = {
        "load": f"{call}; model.load_state_dict(safetensors.torch.load_file({WEIGHTS_FILE!r}))",
        **spec.as_dict(),
        **facts,
    }
    files.write_text(folder / CARD_FILE, yaml.safe_dump(card, sort_keys=False))


def build(
    name: str | None, args: dict[str, Any] | None, weights: str | Path | None, **extra: Any
) -> tuple[ModelSpec, nn.Module]:
    """A timm network with weights from a FILE, a RUN folder, 'pretrained', or None (from scratch).

    A RUN says its own name and arguments; a ``name`` that differs from it is refused. A FILE needs a
    name. Networks that can are built to take any image size. Raises ModelError.
    """
    spec, file = _find(name, args, weights)
    net = _any_size(spec, pretrained=str(weights) == "pretrained" and file is None, **extra)
    if file is not None:
        weight_files.load_into(net, weight_files.read_state_dict(file), file)
    return spec, net


def _find(
    name: str | None, args: dict[str, Any] | None, weights: str | Path | None
) -> tuple[ModelSpec, Path | None]:
    if weights is not None and str(weights) != "pretrained" and Path(weights).is_dir():
        return _from_run(Path(weights), name, args)
    if name is None:
        raise ModelError("a weights file alone does not say which network it is for", "give --student NAME")
    spec, shipped = specs.resolve(name, args)
    if weights is None:
        return spec, None
    return spec, shipped if str(weights) == "pretrained" else Path(weights)


def _from_run(run: Path, name: str | None, args: dict[str, Any] | None) -> tuple[ModelSpec, Path]:
    card = run / CARD_FILE
    if not card.is_file() or not (run / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"{run} holds no exported backbone ({WEIGHTS_FILE} and {CARD_FILE})",
            "give a finished stage-1 run, or a weights file",
        )
    spec = specs.from_dict(yaml.safe_load(card.read_text()))
    if name is not None:
        asked, _ = specs.resolve(name, args)
        if (asked.name, {**asked.args}) != (spec.name, spec.args):
            raise ModelError(
                f"{run} holds {spec.name} {spec.args}, but --student asks for {asked.name} {asked.args}",
                "leave --student out to take what the run holds, or name the same model",
            )
    return spec, run / WEIGHTS_FILE


def _any_size(spec: ModelSpec, **extra: Any) -> nn.Module:
    """The network, built with ``dynamic_img_size`` where timm's model knows it."""
    try:
        return specs.create(spec, dynamic_img_size=True, **extra)
    except ModelError:
        return specs.create(spec, **extra)


def measure(net: nn.Module, image_size: Size) -> tuple[Grid, int]:
    """Grid and width of a convolutional network's last feature map for images of ``image_size``."""
    training = net.training
    net.eval()
    with torch.no_grad():
        features, grid = teachers.flatten_map(net, net.forward_features(torch.zeros(1, 3, *image_size)))  # type: ignore[operator]
    net.train(training)
    return grid, features.patches.shape[2]


def load_backbone(
    ref: str | Path | None,
    name: str | None,
    args: dict[str, Any] | None = None,
) -> Backbone:
    """A backbone from a RUN folder, a weights FILE, 'pretrained' (timm's or ours), or None: from scratch."""
    spec, net = build(name, args, ref)
    return Backbone(net, spec)
