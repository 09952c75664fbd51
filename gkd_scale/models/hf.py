"""Teachers from transformers: any model whose last hidden state is tokens of a grid, or a map.

What the model returns decides, not its name. Three dimensions are tokens: those before the patches are
prefix tokens, the first of them the CLS token unless all are registers. Four are a map, channels first or
last.
The grid comes from the patch size, or from the maps of the hidden states::

    family                               tokens                          CLS            final norm
    ViT, DeiT, Dinov2, DINOv3 ViT        patches, prefix dropped         first prefix   its own
    CLIP, BEiT                           likewise                        first prefix   of its pooler
    SigLIP, SigLIP2                      patches                         their mean     its own
    SAM                                  map of the neck                 their mean     the neck's
    Swin                                 last stage                      their mean     its own
    DINOv3 ConvNeXt                      last stage                      pooled token   its own
    ConvNeXt, ConvNeXtV2                 map of the last stage           their mean     of its pooler

Models that normalise only what they pool (CLIP, BEiT, ConvNeXt) have that norm applied to every token, as
``families.py`` has it for timm. Layers are numbered as timm numbers them: 0 is the first block or stage, -1
the last; they are transformers' hidden states, before the final norm, without the embeddings. Those of Swin,
Swinv2 and FocalNet are taken before patches are merged. If a family has no such states (LeViT, PVT), its
only level is the last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gkd_scale.errors import ModelError
from gkd_scale.models import checkpoints
from gkd_scale.models.checkpoints import Checkpoint, accepts
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.cost import Cost
from gkd_scale.models.families import join, require_dense
from gkd_scale.models.spec import Triple
from gkd_scale.models.teachers import (
    FrozenTeacher,
    choose_device,
    require_levels,
    require_whole_patches,
)
from gkd_scale.models.tokens import to_map
from gkd_scale.types import Features, Grid, Size

_MOST_PREFIX = 32
_POOLED_NORMS = ("post_layernorm", "layernorm", "norm")
_BEFORE_MERGING = "output_hidden_states_before_downsampling"
_ANOTHER = "choose another --image-size, or another teacher"
# Keys of a config that say nothing about the features.
_IDLE = {"transformers_version", "_name_or_path", "architectures", "dtype", "id2label", "label2id"}


class TransformersTeacher(FrozenTeacher):
    """A frozen vision model of transformers as a :class:`~gkd_scale.types.LiveTeacher`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        net: nn.Module,
        image_size: Size,
        mean: Triple,
        std: Triple,
        *,
        layers: Sequence[int],
        dtype: str,
        device: str,
    ) -> None:
        super().__init__(checkpoint.name, net, image_size, mean, std, dtype, device)
        self.config = checkpoint.config
        self._before_merging = _before_merging(net)
        self.layers = ()
        _check_divisible(checkpoint.place, image_size, self.config)
        features, self.grid = require_dense(
            lambda: self._first(checkpoint.place, layers), checkpoint.place, image_size, _ANOTHER
        )
        self.dim = features.patches.shape[2]

    def _first(self, name: str, layers: Sequence[int]) -> tuple[Features, Grid]:
        """The first pass, of two images that differ in a corner, tells what the model's tokens are."""
        pixels = torch.zeros(2, 3, *self.image_size, dtype=torch.uint8)
        patch = _patch_of(self.config) or (1, 1)
        pixels[1, :, : patch[0], : patch[1]] = 255
        out = self._run(pixels, hidden=True)
        last, states = out.last_hidden_state, _levels_of(out, self.config)
        self._last_grid = _grid_of(last, states, self.image_size, self.config)
        self.prefix = last.shape[1] - self._last_grid[0] * self._last_grid[1] if last.ndim == 3 else 0
        self.norm = _pooled_norm(self.net, last, states)
        self._check_corner(name, last, out.hidden_states)
        self.widths = [self._split(level)[0].patches.shape[2] for level in states]
        require_levels(name, layers, len(states))
        self.layers = tuple(layers)
        return self._forward(pixels)

    def _check_corner(self, name: str, last: Tensor, states: Sequence[Tensor]) -> None:
        """ModelError unless the first patch of the image is the first token after the prefix."""
        first = states[0]
        if last.ndim != 3 or first.shape[:2] != last.shape[:2]:
            return
        corner = int((first[1] - first[0]).float().abs().amax(-1).argmax())
        if corner != self.prefix:
            raise ModelError(
                f"{name} has its first patch at token {corner}, and {self.prefix} tokens beside the patches",
                "choose another teacher",
            )

    def fingerprint(self) -> dict[str, Any]:
        """What decides the features, as ``cache.json`` stores it (shards/README.md)."""
        patch = None if hasattr(self.config, "depths") else _patch_of(self.config)
        resampled = accepts(self.net, "interpolate_pos_encoding")
        return {
            "model": self.name,
            "architecture": type(self.net).__name__,
            "args": {},
            "config": facts(self.config),
            **self._facts(patch),
            **({"levels": "before downsampling"} if self._before_merging and self.layers else {}),
            "prefix_tokens": self.prefix,
            "cls": "token" if self._has_cls() else "mean",
            **({"final_norm": self.norm} if self.norm and not self.layers else {}),
            "resampling": f"transformers: {'interpolate_pos_encoding' if resampled else 'its own'}",
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        }

    def _has_cls(self) -> bool:
        """Whether the first prefix token is a CLS token, not a register."""
        return self.prefix > int(getattr(self.config, "num_register_tokens", 0) or 0)

    @torch.no_grad()
    def levels(self, pixels: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) float32 of the levels ``indices``, on the teacher's device."""
        states = _levels_of(self._run(pixels, hidden=True), self.config)
        return [self._as_map(states[index]) for index in indices]

    def level_widths(self, indices: Sequence[int]) -> list[int]:
        """Channels C_i of the maps that ``levels`` gives."""
        return [self.widths[index] for index in indices]

    @torch.no_grad()
    def every_level(self, pixels: Tensor) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) float32 of all levels, then of the default features."""
        out = self._run(pixels, hidden=True)
        features = self._split(out.last_hidden_state, self.norm)[0]
        levels = [self._as_map(level) for level in _levels_of(out, self.config)]
        return [*levels, to_map(features.patches, self._last_grid).float()]

    def _as_map(self, level: Tensor) -> Tensor:
        features, grid = self._split(level)
        return to_map(features.patches, grid).float()

    @torch.no_grad()
    def _forward(self, pixels: Tensor) -> tuple[Features, Grid]:
        out = self._run(pixels, hidden=bool(self.layers))
        if not self.layers:
            return self._split(out.last_hidden_state, self.norm)
        states = _levels_of(out, self.config)
        return join({layer: self._split(states[layer]) for layer in self.layers}, self.layers)

    def _run(self, pixels: Tensor, *, hidden: bool) -> Any:
        """The model's output for pixels (B, 3, H, W) uint8; ``hidden``: with its hidden states."""
        x = self.normalize(pixels.to(self.device, non_blocking=True))
        x = x.to(next(self.net.parameters()).dtype)
        with torch.no_grad(), self._autocast():
            return self.net(
                **_inputs(self.net, x, self.config), output_hidden_states=hidden, return_dict=True
            )

    def _split(self, out: Tensor, norm: str = "") -> tuple[Features, Grid]:
        """Tokens (B, prefix + N, C) or a map to features and their grid, after the norm of that name."""
        if out.ndim == 4:
            grid, tokens = _flat(out, self.image_size)
        else:
            grid, tokens = self._last_grid, out
        if norm:
            tokens = self.net.get_submodule(norm)(tokens)
        prefix = self.prefix if out.ndim == 3 else 0
        patches = tokens[:, prefix:]
        if patches.shape[1] != grid[0] * grid[1]:
            raise ModelError(
                f"a hidden state of {patches.shape[1]} tokens is no {grid[0]}x{grid[1]} grid", _ANOTHER
            )
        cls = tokens[:, 0] if prefix and self._has_cls() else patches.mean(1)
        return Features(cls, patches), grid


def load(config: TeacherConfig, image_size: Size, device: str) -> TransformersTeacher:
    """The teacher that ``hf:FOLDER`` or ``hf:OWNER/NAME`` names, for images of (H, W) pixels; ModelError.

    ``config.weights``: its folder, if it is elsewhere now. ``config.mean`` and ``config.std`` replace what
    preprocessor_config.json says.
    """
    _refuse_timms(config)
    checkpoint = checkpoints.open_checkpoint(str(config.name), config.weights)
    mean, std = checkpoints.pixel_stats(checkpoint, config.mean, config.std)
    return TransformersTeacher(
        checkpoint,
        checkpoints.load_net(checkpoint),
        image_size,
        mean,
        std,
        layers=config.layer or (),
        dtype=config.dtype,
        device=choose_device(device),
    )


def _refuse_timms(config: TeacherConfig) -> None:
    """ModelError for options that only timm has."""
    flags = {
        "--teacher-args": config.args,
        "--patch-size": config.patch_size,
        "--patch-resize": config.patch_resize != "pi",
    }
    if flag := next((flag for flag, value in flags.items() if value), None):
        raise ModelError(
            f"{flag} is for timm's models, and {config.name} is a model of transformers",
            "leave it out, or load the weights by timm's name: --teacher NAME --teacher-weights FILE",
        )


@torch.no_grad()
def dense(net: nn.Module, config: Any, x: Tensor) -> tuple[Features, Grid]:
    """The default features of normalised pixels ``x`` (B, 3, H, W) of any size, and their grid."""
    size = (x.shape[2], x.shape[3])
    out = net(**_inputs(net, x, config), output_hidden_states=True, return_dict=True)
    last, states = out.last_hidden_state, _levels_of(out, config)
    grid = _grid_of(last, states, size, config)
    tokens = _flat(last, size)[1] if last.ndim == 4 else last
    norm = _pooled_norm(net, last, states)
    tokens = net.get_submodule(norm)(tokens) if norm else tokens
    prefix = tokens.shape[1] - grid[0] * grid[1]
    patches = tokens[:, prefix:]
    return Features(tokens[:, 0] if prefix else patches.mean(1), patches), grid


def cost(config: TeacherConfig, image_size: Size) -> Cost:
    """What a teacher costs on images of (H, W) pixels, without its weights; raises ModelError."""
    _refuse_timms(config)
    checkpoint = checkpoints.open_checkpoint(str(config.name), config.weights, config_only=True)
    return cost_of(checkpoint, image_size, config.layer or ())


def cost_of(checkpoint: Checkpoint, image_size: Size, layers: Sequence[int] = ()) -> Cost:
    """As :func:`cost`, of an open checkpoint."""
    reference, config = checkpoint.place, checkpoint.config
    try:
        _check_divisible(reference, image_size, config)
        with torch.device("meta"):
            net = transformers.AutoModel.from_config(config).eval()
            inputs = _inputs(net, torch.zeros(1, 3, *image_size), config)
        _before_merging(net)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            out = net(**inputs, output_hidden_states=True, return_dict=True)
        last, states = out.last_hidden_state, _levels_of(out, config)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{reference} does not take {image_size[0]}x{image_size[1]} images: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}",
            _ANOTHER,
        ) from None
    require_levels(reference, layers, len(states))
    grid = _grid_of(last, states, image_size, config)
    outputs = [states[layer] for layer in layers] or [last]
    flat = [_flat(output, image_size) if output.ndim == 4 else (grid, output) for output in outputs]
    sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in net.modules()]
    dim = sum(tokens.shape[2] for _, tokens in flat)
    return Cost(counter.get_total_flops(), sum(sizes), max(sizes), dim, flat[0][0])


def _inputs(net: nn.Module, x: Tensor, config: Any) -> dict[str, Any]:
    """The network's arguments for normalised pixels ``x`` (B, 3, H, W)."""
    if accepts(net, "spatial_shapes"):  # SigLIP2 NaFlex: patches (B, N, p * p * 3), row by row
        height, width = _patch_of(config) or (1, 1)
        patches = x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 3, 5, 1)
        grids = torch.tensor([patches.shape[1:3]] * len(x), device="cpu")  # read as numbers
        tokens = patches.flatten(3).flatten(1, 2)
        return {"pixel_values": tokens, "spatial_shapes": grids, "pixel_attention_mask": None}
    extra = {"interpolate_pos_encoding": True} if accepts(net, "interpolate_pos_encoding") else {}
    return {"pixel_values": x, **extra}


def _before_merging(net: nn.Module) -> bool:
    """Make a network return states from before patches are merged, as timm does; False if it cannot."""
    encoder = getattr(net, "encoder", None)
    if encoder is None or not accepts(encoder, _BEFORE_MERGING):
        return False

    def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, _BEFORE_MERGING: True}

    encoder.register_forward_pre_hook(hook, with_kwargs=True)
    return True


def _levels_of(out: Any, config: Any) -> list[Tensor]:
    """The hidden states after each block or stage, shallow to deep.

    The last alone if the others are not timm's levels: states after downsampling (LeViT), or more than one
    a stage (PVT).
    """
    states = list(getattr(out, "reshaped_hidden_states", None) or out.hidden_states)
    stages = getattr(config, "depths", None) or getattr(config, "depth", None)
    stages = stages if isinstance(stages, list | tuple) else None
    count = len(stages) if stages else int(getattr(config, "num_hidden_layers", len(states)))
    if len(states) == count + 1:  # the first are the embeddings
        states = states[1:]
    downsampled = stages and len(states) > 1 and states[-1].shape == states[-2].shape
    return states[-1:] if len(states) != count or downsampled else states


def facts(config: Any) -> dict[str, Any]:
    """The values of a config that differ from its defaults, except names and versions."""
    values: dict[str, Any] = json.loads(json.dumps(config.to_diff_dict(), default=str))
    return {key: value for key, value in values.items() if key not in _IDLE}


def _patch_of(config: Any) -> Size | None:
    """Patch height and width in pixels, if the config says them."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int):
        return patch, patch
    if isinstance(patch, list | tuple) and len(patch) == 2:
        return int(patch[0]), int(patch[1])
    return None


def _check_divisible(name: str, image_size: Size, config: Any) -> None:
    """ModelError unless the image size is a whole number of patches."""
    patch = _patch_of(config)
    if patch and not hasattr(config, "depths"):
        require_whole_patches(name, image_size, patch)


def _grid_of(last: Tensor, states: Sequence[Tensor], image_size: Size, config: Any) -> Grid:
    """The grid of the last hidden state; ModelError if it is neither tokens of a grid nor a map."""
    if last.ndim == 4:
        return _flat(last, image_size)[0]
    if last.ndim == 3:
        patch = _patch_of(config)
        maps = [_flat(state, image_size)[0] for state in states[-1:] if state.ndim == 4]
        grids = maps or ([(image_size[0] // patch[0], image_size[1] // patch[1])] if patch else [])
        for rows, columns in grids:
            if 0 <= last.shape[1] - rows * columns <= _MOST_PREFIX:
                return rows, columns
    raise ModelError(
        f"its last hidden state is {tuple(last.shape)} for {image_size[0]}x{image_size[1]} images: neither "
        "tokens of a grid nor a feature map",
        "choose another teacher",
    )


def _flat(feature_map: Tensor, image_size: Size) -> tuple[Grid, Tensor]:
    """The grid and the row-major tokens (B, h·w, C) of a map with channels first or last.

    Height and width are the two sides in the proportion of the image, up to the rounding of strides.
    """
    height, width = image_size

    def fits(rows: int, columns: int) -> bool:
        return rows <= height and columns <= width and abs(height * columns - width * rows) < height + width

    _, one, two, three = feature_map.shape
    if fits(two, three) or not fits(one, two):
        return (two, three), feature_map.flatten(2).transpose(1, 2)
    return (one, two), feature_map.flatten(1, 2)


def _pooled_norm(net: nn.Module, last: Tensor, states: Sequence[Tensor]) -> str:
    """The norm that the model applies to nothing but what it pools; the empty string if there is none."""
    if last.shape != states[-1].shape or not torch.equal(last, states[-1]):
        return ""
    width = last.shape[-1] if last.ndim == 3 else None
    norms = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.LayerNorm)
        and name.rpartition(".")[2] in _POOLED_NORMS
        and not any(part.isdigit() or part == "embeddings" for part in name.split("."))
        and width in (None, module.normalized_shape[0])
    ]
    return norms[0] if len(norms) == 1 else ""
