"""What differs between timm's families, in one place; the rest of the package sees dense features.

::

    family                                   tokens                           CLS            final norm
    ViT, DeiT, DINO, DINOv2, DINOv3, EVA02   patch tokens, prefix dropped     first prefix   norm, or fc_norm
    Swin                                     last stage, NHWC                 their mean     norm
    ConvNeXt                                 last stage                       their mean     head.norm
    ResNet, MobileNet, EfficientViT          last feature map                 their mean     none

Models that timm pools before it normalises (EVA02, ConvNeXt) leave the final norm to their head; here it is
applied to every token, as DINOv3 and the masked pre-training of EVA02 do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.errors import ModelError
from gkd_scale.models.tokens import to_map, to_tokens
from gkd_scale.types import Features, Grid, Size


def is_tokens(net: nn.Module) -> bool:
    """Whether a timm model is a plain transformer: tokens with prefix tokens before the patches."""
    return hasattr(net, "num_prefix_tokens") and hasattr(getattr(net, "patch_embed", None), "patch_size")


def has_cls(net: nn.Module) -> bool:
    """Whether the first prefix token of a plain transformer is a CLS token."""
    return is_tokens(net) and bool(net.num_prefix_tokens) and getattr(net, "cls_token", None) is not None


def patch_size(net: nn.Module) -> Size:
    """Patch height and width of a plain transformer, in pixels."""
    size: Any = net.patch_embed.patch_size  # type: ignore[union-attr]
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def token_grid(net: nn.Module, x: Tensor) -> Grid:
    """The grid of a plain transformer's patches of ``x`` (B, 3, H, W)."""
    rows, columns = patch_size(net)
    return x.shape[2] // rows, x.shape[3] // columns


def stride(net: Any) -> int:
    """Pixels a side: the patch size of a plain transformer, else the stride of the last stage."""
    return max(patch_size(net)) if is_tokens(net) else int(net.feature_info[-1]["reduction"])


def as_input(net: nn.Module, pixels: Tensor) -> Tensor:
    """Normalised pixels (B, 3, H, W) in the dtype that a network computes in, and in its layout.

    Convolutions follow the layout of their input, and are up to twice as fast channels-last.
    """
    pixels = pixels.to(next(net.parameters()).dtype)
    return pixels if is_tokens(net) else pixels.contiguous(memory_format=torch.channels_last)


def final_norm(net: nn.Module) -> str | None:
    """The name of the final norm that ``forward_features`` leaves to the head; None if it leaves none."""
    from timm.layers import LayerNorm2d

    if is_tokens(net):
        absent = (nn.Identity, type(None))
        inside, after = getattr(net, "norm", None), getattr(net, "fc_norm", None)
        return "fc_norm" if isinstance(inside, absent) and not isinstance(after, absent) else None
    return "head.norm" if isinstance(getattr(getattr(net, "head", None), "norm", None), LayerNorm2d) else None


def normalise(net: nn.Module, out: Tensor) -> Tensor:
    """What ``forward_features`` gives, or tokens (…, C) of a plain transformer, after the final norm."""
    name = final_norm(net)
    return out if name is None else net.get_submodule(name)(out)


def normalise_map(net: nn.Module, feature_map: Tensor) -> Tensor:
    """As :func:`normalise`, for a map (B, C, h, w) that ``forward_intermediates(norm=True)`` returns."""
    return normalise(net, feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def dense(net: nn.Module, x: Tensor) -> tuple[Features, Grid]:
    """Features after the final norm, and their grid, of normalised pixels ``x`` (B, 3, H, W)."""
    return finish(net, x, net.forward_features(x))  # type: ignore[operator]


def finish(net: nn.Module, x: Tensor, out: Tensor) -> tuple[Features, Grid]:
    """As :func:`dense`, of ``out``, which ``forward_features`` gives for normalised pixels ``x``."""
    out = normalise(net, out)
    if not is_tokens(net):
        return flatten_map(net, out)
    return split_tokens(net, out), token_grid(net, x)


def widths(net: nn.Module, indices: Sequence[int]) -> list[int]:
    """Channels of timm's feature levels ``indices``."""
    return [int(net.feature_info[index]["num_chs"]) for index in indices]  # type: ignore[index]


def levels(net: nn.Module, x: Tensor, indices: Sequence[int]) -> tuple[Features, Grid]:
    """As :func:`dense`, of timm's feature levels ``indices``, unnormalised, as timm gives them.

    Several levels are concatenated channel by channel, in the order of ``indices``. Raises ModelError if
    their grids differ.
    """
    count = len(net.feature_info)  # type: ignore[arg-type]
    places = [index % count for index in indices]
    order = sorted(set(places))
    forward: Any = net.forward_intermediates
    run = partial(forward, x, indices=order, intermediates_only=True, stop_early=True)
    if is_tokens(net):
        outputs = run(return_prefix_tokens=True, output_fmt="NLC")
        results = [(_level(net, output), token_grid(net, x)) for output in outputs]
    else:
        results = [flatten_map(nn.Identity(), level) for level in run(output_fmt="NCHW")]
    return join(dict(zip(order, results, strict=True)), places)


def _level(net: nn.Module, output: Any) -> Features:
    """CLS (or the mean) and patches of one of a plain transformer's levels."""
    patches, prefix = output if isinstance(output, tuple) else (output, None)
    return Features(prefix[:, 0] if prefix is not None and has_cls(net) else patches.mean(1), patches)


def join(levels: Mapping[int, tuple[Features, Grid]], order: Sequence[int]) -> tuple[Features, Grid]:
    """Features of ``levels`` in ``order``, channel by channel, and their grid; ModelError if grids differ."""
    grids = {grid for _, grid in levels.values()}
    if len(grids) > 1:
        listing = ", ".join(f"{level}: {h}x{w}" for level, (_, (h, w)) in levels.items())
        raise ModelError(
            f"feature levels of different grids cannot be joined ({listing})", "give levels of one grid"
        )
    parts = zip(*(levels[level][0] for level in order), strict=True)
    return Features(*(torch.cat(tensors, -1) for tensors in parts)), grids.pop()


def every_level(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Maps (B, C_i, h_i, w_i) of all of timm's feature levels, then of :func:`dense`'s features; one pass."""
    forward: Any = net.forward_intermediates
    out, maps = forward(x, output_fmt="NCHW")
    features, grid = finish(net, x, out)
    return [*maps, to_map(features.patches, grid)]


def pyramid_levels(net: nn.Module) -> list[int]:
    """The four of timm's feature levels that a segmentation head reads, shallow to deep.

    A plain transformer gives those after a third, a half, two thirds and all of its blocks; other networks
    give the last four, the first more than once if there are fewer.
    """
    count = len(net.feature_info)  # type: ignore[arg-type]
    if is_tokens(net):
        return [max(0, round(count * part) - 1) for part in (1 / 3, 1 / 2, 2 / 3, 1)]
    return [max(0, index) for index in range(count - 4, count)]


def ladder_levels(net: nn.Module) -> list[int]:
    """Those of :func:`pyramid_levels` before the last, each once."""
    return sorted(set(pyramid_levels(net)[:-1]))


def dense_and_levels(net: nn.Module, x: Tensor) -> tuple[Features, list[Tensor]]:
    """:func:`dense`, and maps (B, C_i, h_i, w_i) of the levels before the last that a head reads; one pass.

    Maps are as :class:`~gkd_scale.models.backbone.Backbone` has them: of a plain transformer after its norm.
    """
    levels = ladder_levels(net)
    forward: Any = net.forward_intermediates
    if not is_tokens(net):
        out, maps = forward(x, indices=levels, output_fmt="NCHW")
    else:
        out, maps = forward(x, indices=levels, norm=True)
        maps = [normalise_map(net, feature_map) for feature_map in maps]
    return finish(net, x, out)[0], maps


def split_tokens(net: nn.Module, tokens: Tensor) -> Features:
    """(B, prefix + N, C) tokens of a plain transformer to CLS (or the mean) and patches."""
    prefix = int(net.num_prefix_tokens)  # type: ignore[arg-type]
    patches = tokens[:, prefix:]
    return Features(tokens[:, 0] if has_cls(net) else patches.mean(1), patches)


def flatten_map(net: nn.Module, feature_map: Tensor) -> tuple[Features, Grid]:
    """A feature map, (B, C, h, w) or timm's NHWC, to pooled CLS, row-major tokens, and the grid.

    ModelError for anything else.
    """
    if not isinstance(feature_map, Tensor) or feature_map.ndim != 4:
        raise ModelError(
            f"{type(net).__name__} gives neither tokens of a grid nor a feature map",
            "choose a plain vision transformer, or a network with a feature map: gkd-scale students",
        )
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        feature_map = feature_map.permute(0, 3, 1, 2)
    patches = to_tokens(feature_map)
    return Features(patches.mean(1), patches), (feature_map.shape[2], feature_map.shape[3])


def require_dense(
    run: Callable[[], tuple[Features, Grid]], name: str, image_size: Size, hint: str
) -> tuple[Features, Grid]:
    """What ``run`` gives for images of ``image_size``; ModelError unless it is tokens of a grid.

    Some of timm's networks take one size only, and some give neither tokens of a grid nor a feature map:
    several resolutions, pooled tokens, tokens whose number is not their patch size's (hybrids, NaFlex).
    """
    try:
        features, grid = run()
    except torch.OutOfMemoryError:
        raise
    except ModelError as error:
        raise ModelError(f"{name}: {error.message}", error.hint) from None
    except Exception as error:
        raise ModelError(
            f"{name} does not take {image_size[0]}x{image_size[1]} images: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            hint,
        ) from None
    count = features.patches.shape[1]
    if features.patches.ndim != 3 or count != grid[0] * grid[1] or not count:
        raise ModelError(
            f"{name} gives {tuple(features.patches.shape)} for {image_size[0]}x{image_size[1]} images, "
            f"no tokens of a {grid[0]}x{grid[1]} grid",
            hint,
        )
    return features, grid


def trial(twin: nn.Module, name: str, image_size: Size) -> tuple[Grid, int, frozenset[str]]:
    """Grid and width of a network's features for images of ``image_size``, and its idle parameters.

    ``twin`` is the network on torch's meta device: shapes and the graph are found without arithmetic. Idle
    are parameters that the features do not depend on, such as a classifier's hidden layer. Raises ModelError
    if the network does not take the size, or gives neither tokens of a grid nor a feature map.
    """
    pixels = torch.zeros(2, 3, *image_size, device="meta")
    hint = (
        "choose another student (gkd-scale students), or give it the size (--student-args 'img_size=[H, W]')"
    )
    features, grid = require_dense(lambda: dense(twin.train(), pixels), name, image_size, hint)
    parameters: dict[str, Any] = dict(twin.named_parameters())
    gradients = torch.autograd.grad(
        features.cls.sum() + features.patches.sum(), list(parameters.values()), allow_unused=True
    )
    idle = (name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None)
    return grid, features.patches.shape[2], frozenset(idle)
