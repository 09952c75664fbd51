"""Teachers: any timm model, frozen, as a function from pixels to dense features.

Transformers give their patch tokens and CLS token; convolutional networks give their feature map as
tokens and its spatial mean as CLS. The default level is the last, after the final norm; ``layers``
chooses one of timm's feature levels (``forward_intermediates``), unnormalised, as timm gives it, or several,
concatenated channel by channel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.errors import ModelError
from gkd_scale.models import spec as specs
from gkd_scale.models import weights as weight_files
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.families import (
    as_input,
    dense,
    every_level,
    final_norm,
    has_cls,
    is_tokens,
    levels,
    patch_size,
    require_dense,
    widths,
)
from gkd_scale.models.spec import ModelSpec, Triple
from gkd_scale.types import Features, Grid, Size

_ANOTHER = "choose another teacher or another --image-size"


class Normalize(nn.Module):
    """Pixels 0..255 (B, 3, H, W) of any dtype to (x / 255 - mean) / std, computed in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Triple, std: Triple) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self.mean.float()) / self.std.float()


class FrozenTeacher(ABC):
    """Common to all teachers: the frozen network, device, arithmetic, and the two calls."""

    layers: tuple[int, ...]
    grid: Grid
    dim: int

    def __init__(
        self, name: str, net: nn.Module, image_size: Size, mean: Triple, std: Triple, dtype: str, device: str
    ) -> None:
        self.name = name
        self.parameters = sum(parameter.numel() for parameter in net.parameters())
        self.net = net.eval().requires_grad_(False)
        self.image_size = image_size
        self.mean, self.std = mean, std
        self.dtype = dtype
        self._weights = weight_files.fingerprint(net)
        self.device = torch.device(device)
        self.normalize = Normalize(mean, std).to(self.device)
        self.net.to(self.device)

    def _facts(self, patch: Size | None) -> dict[str, Any]:
        """What the fingerprints of all teachers say; ``patch`` in pixels, if it is the stride."""
        return {
            "weights_sha256": self._weights,
            "dtype": self.dtype,
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": list(self.image_size),
            "patch_size": list(patch) if patch else None,
            "grid": list(self.grid),
            "dim": self.dim,
            "layer": list(self.layers) if len(self.layers) > 1 else next(iter(self.layers), None),
        }

    def __call__(self, pixels: Tensor) -> Features:
        """Features(cls (B, C), patches (B, N, C)), float32 on the CPU, of pixels (B, 3, H, W) uint8."""
        return Features(*(tensor.cpu() for tensor in self.features(pixels)))

    def features(self, pixels: Tensor) -> Features:
        """As ``__call__``, on the teacher's device: for a teacher that runs beside its student."""
        features, _ = self._forward(pixels)
        return Features(*(tensor.float() for tensor in features))

    @abstractmethod
    def _forward(self, pixels: Tensor) -> tuple[Features, Grid]:
        """Features in any arithmetic, on the teacher's device, and their grid."""

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, getattr(torch, self.dtype), enabled=self.dtype != "float32")


class TimmTeacher(FrozenTeacher):
    """A frozen timm model as a :class:`~gkd_scale.types.LiveTeacher`."""

    def __init__(
        self,
        name: str,
        net: nn.Module,
        spec: ModelSpec,
        image_size: Size,
        *,
        layers: Sequence[int],
        dtype: str,
        device: str,
        resize: str,
    ) -> None:
        super().__init__(name, net, image_size, spec.mean, spec.std, dtype, device)
        self.spec = spec
        self.layers = tuple(layers)
        self.resize = resize
        black = torch.zeros(1, 3, *image_size, dtype=torch.uint8)
        features, self.grid = require_dense(lambda: self._forward(black), name, image_size, _ANOTHER)
        self.dim = features.patches.shape[2]

    def fingerprint(self) -> dict[str, Any]:
        """What decides the features; see CACHE decision 6 in shards/README.md."""
        import timm

        tokens = is_tokens(self.net)
        norm = None if self.layers else final_norm(self.net)
        return {
            "model": self.name,
            "architecture": self.spec.name,
            "args": {
                key: list(v) if isinstance(v, tuple) else v for key, v in sorted(self.spec.args.items())
            },
            **self._facts(patch_size(self.net) if tokens else None),
            "prefix_tokens": int(self.net.num_prefix_tokens) if tokens else 0,  # type: ignore[arg-type]
            "cls": "token" if has_cls(self.net) else "mean",
            **({"final_norm": norm} if norm else {}),
            **({"patch_resize": self.resize} if self.resize != "pi" else {}),
            "resampling": "timm: bicubic position embedding, "
            f"{'pseudo-inverse' if self.resize == 'pi' else self.resize} patch embedding"
            if tokens
            else None,
            "torch": torch.__version__.split("+")[0],
            "timm": timm.__version__,
        }

    def level_widths(self, indices: Sequence[int]) -> list[int]:
        """Channels C_i of the maps that ``levels`` gives."""
        return widths(self.net, indices)

    @torch.no_grad()
    def levels(self, pixels: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) float32 of timm's feature levels ``indices``, on the teacher's device."""
        forward: Any = self.net.forward_intermediates
        order = sorted(indices)
        x = as_input(self.net, self.normalize(pixels.to(self.device, non_blocking=True)))
        with self._autocast():
            maps = forward(x, indices=order, stop_early=True, intermediates_only=True)
        return [maps[order.index(index)].float() for index in indices]

    @torch.no_grad()
    def every_level(self, pixels: Tensor) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) float32 of all feature levels, then of the default features."""
        x = as_input(self.net, self.normalize(pixels.to(self.device, non_blocking=True)))
        with self._autocast():
            return [level.float() for level in every_level(self.net, x)]

    @torch.no_grad()
    def _forward(self, pixels: Tensor) -> tuple[Features, Grid]:
        x = as_input(self.net, self.normalize(pixels.to(self.device, non_blocking=True)))
        with self._autocast():
            return levels(self.net, x, self.layers) if self.layers else dense(self.net, x)


def load(config: TeacherConfig, image_size: Size, device: str) -> TimmTeacher:
    """A frozen timm model with timm's weights or the user's, for images of (H, W) pixels; ModelError."""
    name, args, layers = str(config.name), config.timm_args(), config.layer or ()
    spec, default = specs.resolve(name, args, config.mean, config.std)
    file, resize = config.weights or default, config.patch_resize
    net = specs.create(spec, image_size=image_size, pretrained=file is None and resize == "pi")
    check_divisible(net, image_size, name)
    if file is not None:
        default_args = specs.resolve(name)[0].args if file == default else {}
        native_size = {**default_args, **args}.get("img_size")
        state = weight_files.read_state_dict(file)
        weight_files.load_into(net, state, file, resize=resize, image_size=native_size)
    elif resize != "pi":
        weight_files.load_downloaded(net, spec, resize)
    if config.patch_size is not None and not is_tokens(net):
        raise ModelError(f"{name} has no patch size to set", "leave --patch-size out")
    check_layers(net, layers, name)
    return TimmTeacher(
        name,
        net,
        spec,
        image_size,
        layers=layers,
        dtype=config.dtype,
        device=choose_device(device),
        resize=resize,
    )


def check_divisible(net: nn.Module, image_size: Size, name: str) -> None:
    """ModelError unless the image size is a whole number of patches."""
    if is_tokens(net):
        require_whole_patches(name, image_size, patch_size(net))


def require_whole_patches(name: str, image_size: Size, patch: Size) -> None:
    """ModelError unless an image of (H, W) pixels is a whole number of ``name``'s patches (h, w)."""
    if any(side % p for side, p in zip(image_size, patch, strict=True)):
        near = [max(1, round(side / p)) * p for side, p in zip(image_size, patch, strict=True)]
        raise ModelError(
            f"{image_size[0]}x{image_size[1]} is no whole number of {name}'s {patch[0]}x{patch[1]} patches",
            f"use --image-size {near[0]}x{near[1]}",
        )


def check_layers(net: nn.Module, layers: Sequence[int], name: str) -> None:
    """ModelError unless ``layers`` are among the feature levels that timm lists for the model, each once."""
    if layers:
        count = len(net.feature_info)  # type: ignore[arg-type]
        require_levels(name, layers, count, readable=hasattr(net, "forward_intermediates"))


def require_levels(name: str, layers: Sequence[int], count: int, *, readable: bool = True) -> None:
    """ModelError unless ``layers`` are different ones of ``count`` feature levels that can be read."""
    for layer in layers:
        if not -count <= layer < count or not readable:
            raise ModelError(
                f"{name} has feature levels 0 to {count - 1}, not {layer}",
                "give --teacher-layer of these",
            )
    if len({layer % count for layer in layers}) < len(layers):
        flags = " ".join(map(str, layers))
        raise ModelError(f"--teacher-layer {flags} names a level twice", "give each level once")


def choose_device(device: str) -> str:
    """'auto' to 'cuda' if there is a GPU, else 'cpu'; ModelError for a device that the machine lacks."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelError(f"device '{device}' cannot be used: {reason}", "use auto or cpu") from None
    return device
