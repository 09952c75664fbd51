"""Backbones as files, and as feature pyramids for a segmentation head.

A trained student is two files: ``backbone.safetensors``, exactly the state dict of
``timm.create_model(name, num_classes=0, **args)``, and ``backbone.yaml``, which holds name and args.
Stage 1 writes them, stage 2 and evaluate read them; any timm model can take their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale import files
from gkd_scale.errors import ModelError
from gkd_scale.models import families
from gkd_scale.models import spec as specs
from gkd_scale.models import weights as weight_files
from gkd_scale.models.names import HF
from gkd_scale.models.spec import ModelSpec
from gkd_scale.models.teachers import Normalize
from gkd_scale.models.tensor_files import file_in, write_tensors

WEIGHTS_FILE = "backbone.safetensors"
CARD_FILE = "backbone.yaml"
STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """A timm network as a pyramid of four feature maps at strides of about 4, 8, 16 and 32.

    A plain transformer gives four of its blocks (a third, a half, two thirds and all of its depth:
    3, 5, 7, 11 of 12), after the final norm, resampled by parameter-free bilinear interpolation; a
    hierarchical network gives its own last four levels. One with fewer levels (EfficientViT-M has strides
    16, 32 and 64) gives its first more than once, resampled in the same way.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.name = spec.name
        self.mean, self.std = spec.mean, spec.std
        self.normalize = Normalize(spec.mean, spec.std)
        self.is_tokens = families.is_tokens(net)
        info: Any = net.feature_info
        self.indices = families.pyramid_levels(net)
        if self.is_tokens:
            self.stride = max(families.patch_size(net))
            self.channels = (int(net.num_features),) * 4  # type: ignore[arg-type]
            self.strides = [2 ** round(math.log2(self.stride))] * 4  # patch 14 counts as 16
        else:
            # Convolutions take any size; windows of hierarchical transformers want whole patches.
            self.stride = STRIDES[-1] if hasattr(net, "patch_embed") else 1
            first, second, third, last = families.widths(net, self.indices)
            self.channels = (first, second, third, last)
            few = len(info) < len(STRIDES)
            self.strides = [int(info[i]["reduction"]) for i in self.indices] if few else list(STRIDES)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """``pixels`` (B, 3, H, W) 0..255, H and W multiples of ``stride``; four maps (B, C_i, h_i, w_i)."""
        return self.maps(self.normalize(pixels))

    def maps(self, x: Tensor) -> list[Tensor]:
        """As ``forward``, for normalised pixels."""
        x = families.as_input(self.net, x)
        net: Any = self.net
        indices = sorted(set(self.indices))
        norm = {"norm": True} if self.is_tokens else {}
        maps = net.forward_intermediates(x, indices=indices, intermediates_only=True, **norm)
        if self.is_tokens:
            maps = [families.normalise_map(net, feature_map) for feature_map in maps]
        return self.pyramid([maps[indices.index(index)] for index in self.indices])

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Resample maps of the four ``indices`` from the network's strides to about 4, 8, 16 and 32."""
        scales = (stride / target for stride, target in zip(self.strides, STRIDES, strict=True))
        return [_resample(feature_map, scale) for feature_map, scale in zip(maps, scales, strict=True)]

    def last_blocks(self, count: int) -> list[str]:
        """Names of the parameters of ``net``'s last ``count`` blocks and of what comes after them.

        Blocks are timm's: transformer blocks, or the residual blocks of a convolutional network. ModelError
        if there are not more than ``count``.
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
    write_tensors(folder / WEIGHTS_FILE, state, torch.float32)
    call = f"timm.create_model({spec.name!r}, num_classes=0, **args)"
    card = {
        "load": f"{call}; model.load_state_dict(safetensors.torch.load_file({WEIGHTS_FILE!r}))",
        **spec.as_dict(),
        **facts,
    }
    files.write_text(folder / CARD_FILE, yaml.safe_dump(card, sort_keys=False))


def teachers_of(card: Mapping[str, Any]) -> list[str]:
    """The names of the teachers of a stage-1 run, from its card; none of what was not distilled."""
    names = card.get("teacher") or []
    return [str(name) for name in (names if isinstance(names, list) else [names])]


def build(
    name: str | None,
    args: dict[str, Any] | None,
    weights: str | Path | None,
    *,
    drop_path: float = 0.0,
    resize: str = "pi",
) -> tuple[ModelSpec, nn.Module]:
    """A timm network with weights from a FILE, a RUN folder, 'pretrained', or None (from scratch).

    A RUN holds its name and arguments. Others are refused, except ``patch_size`` and ``img_size``: patch and
    position embeddings are resampled to these, as ``resize`` says. A FILE needs a name. If timm can, the
    network is built to take any image size. Raises ModelError.
    """
    spec, file, file_args = _find(name, args, weights)
    downloaded = file is None and str(weights) == "pretrained"
    net = any_size(spec, pretrained=downloaded and resize == "pi", drop_path=drop_path)
    if file is not None:
        state = weight_files.read_state_dict(file)
        weight_files.load_into(net, state, file, resize=resize, image_size=file_args.get("img_size"))
        if name is not None and name.startswith(HF):
            _check_twin(name, net, spec, file)
    elif downloaded and resize != "pi":
        weight_files.load_downloaded(net, spec, resize)
    return spec, net


def _check_twin(name: str, net: nn.Module, spec: ModelSpec, file: Path) -> None:
    """ModelError unless timm's twin of ``name``, with its arguments and weights, computes the same tokens."""
    from gkd_scale.models import twins

    twin, default = specs.resolve(name)
    if default is not None and (spec.name, spec.args, file) != (twin.name, twin.args, default):
        with torch.random.fork_rng(devices=[]):
            net = any_size(twin)
        state = weight_files.read_state_dict(default)
        weight_files.load_into(net, state, default, image_size=twin.args.get("img_size"))
    twins.check(name, net, twin)


def _find(
    name: str | None, args: dict[str, Any] | None, weights: str | Path | None
) -> tuple[ModelSpec, Path | None, dict[str, Any]]:
    """The requested network, its weights file, and the model arguments of the run that saved the file."""
    if weights is not None and str(weights) != "pretrained" and Path(weights).is_dir():
        return _from_run(Path(weights), name, args)
    if name is None:
        raise ModelError("a weights file alone does not say which network it is for", "give --student NAME")
    spec, default = specs.resolve(name, args)
    if spec.origin is not None and weights in (None, "pretrained"):
        return spec, default, specs.resolve(name)[0].args
    if weights is None:
        return spec, None, {}
    return spec, default if str(weights) == "pretrained" else Path(weights), {}


def _from_run(
    run: Path, name: str | None, args: dict[str, Any] | None
) -> tuple[ModelSpec, Path, dict[str, Any]]:
    card = run / CARD_FILE
    if not card.is_file() or not (run / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"{run} holds no exported backbone ({WEIGHTS_FILE} and {CARD_FILE})",
            f"give a finished stage-1 run, or {file_in(run).removeprefix('give ')}",
        )
    spec = specs.from_dict(yaml.safe_load(card.read_text()))
    file_args = spec.args
    if name is not None:
        request, _ = specs.resolve(name, args)
        if (request.name, request.fixed_args()) != (spec.name, spec.fixed_args()):
            raise ModelError(
                f"{run} holds {spec.name} {spec.args}, but --student asks for {request.name} {request.args}",
                "leave --student out to take what the run holds, or name the same model",
            )
        sizes = {key: value for key, value in request.args.items() if key in specs.SIZES}
        spec = replace(spec, args={**spec.args, **sizes})
    return spec, run / WEIGHTS_FILE, file_args


def any_size(spec: ModelSpec, *, pretrained: bool = False, drop_path: float = 0.0) -> nn.Module:
    """The network, built to take any image size if timm can; its architecture is that of its own size.

    Some of timm's models (Swin) have stochastic depth by default, so ``drop_path`` is always passed. Raises
    ModelError if it is above 0 and the model has none.
    """
    optional: dict[str, Any] = {"dynamic_img_size": True}
    if drop_path:
        spec = replace(spec, args={**spec.args, "drop_path_rate": drop_path})
    else:
        optional["drop_path_rate"] = 0.0
    return specs.create(spec, pretrained=pretrained, optional=optional)


def load_backbone(
    ref: str | Path | None,
    name: str | None = None,
    args: dict[str, Any] | None = None,
) -> Backbone:
    """A backbone from a RUN folder, a weights FILE, 'pretrained' (timm's or ours), or None: from scratch."""
    spec, net = build(name, args, ref)
    return Backbone(net, spec)
