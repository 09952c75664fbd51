"""A tiny random instance of every family of transformers that can be a teacher, saved as a folder.

``expected`` computes the tokens by the model's own call and its own modules, without gkd_scale.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as t
from torch import Tensor

from gkd_scale.types import Size

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]

_WIDE: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
_BLOCKS: dict[str, Any] = {**_WIDE, "intermediate_size": 96}
_VIT: dict[str, Any] = {**_BLOCKS, "image_size": 56, "patch_size": 14}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 16,
    "window_size": 2,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
}
_SAM: dict[str, Any] = {
    **_WIDE,
    "mlp_dim": 96,
    "image_size": 64,
    "patch_size": 16,
    "output_channels": 32,
    "window_size": 2,
    "global_attn_indexes": [1],
    "num_pos_feats": 16,
}
_TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "projection_dim": 16,
}
_RESAMPLE = {"interpolate_pos_encoding": True}


def _after(prefix: int, norm: str = "") -> Callable[[Any, Tensor], Tensor]:
    def expected(net: Any, pixels: Tensor) -> Tensor:
        options = _RESAMPLE if type(net).__name__ not in _ALWAYS else {}
        tokens = net(pixels, **options).last_hidden_state
        tokens = net.get_submodule(norm)(tokens) if norm else tokens
        return tokens[:, prefix:]

    return expected


_ALWAYS = ("Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel", "DINOv3ConvNextModel")


def _map(norm: str = "") -> Callable[[Any, Tensor], Tensor]:
    def expected(net: Any, pixels: Tensor) -> Tensor:
        tokens = net(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        return net.get_submodule(norm)(tokens) if norm else tokens

    return expected


def _naflex(net: Any, pixels: Tensor) -> Tensor:
    """Patches as the image processor of SigLIP2 cuts them."""
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    patches = torch.stack([convert_image_to_patches(each, 14) for each in pixels])
    shapes = torch.tensor([[pixels.shape[2] // 14, pixels.shape[3] // 14]] * len(pixels))
    mask = torch.ones(patches.shape[:2], dtype=torch.long)
    return net(patches, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state  # type: ignore[no-any-return]


class Family(NamedTuple):
    """``config`` of the saved model; ``tower`` the class that reads images; sizes in pixels."""

    config: Any
    tower: str
    expected: Callable[[Any, Tensor], Tensor]
    size: Size
    dim: int = 48
    prefix: int = 0
    levels: int = 2


FAMILIES = {
    "Dinov2": Family(t.Dinov2Config(**_VIT), "Dinov2Model", _after(1), (56, 84), prefix=1),
    "Dinov2WithRegisters": Family(
        t.Dinov2WithRegistersConfig(**_VIT, num_register_tokens=3),
        "Dinov2WithRegistersModel",
        _after(4),
        (56, 84),
        prefix=4,
    ),
    "DINOv3 ViT": Family(
        t.DINOv3ViTConfig(**{**_VIT, "patch_size": 16, "image_size": 64}, num_register_tokens=2),
        "DINOv3ViTModel",
        _after(3),
        (64, 96),
        prefix=3,
    ),
    "DINOv3 ConvNeXt": Family(
        t.DINOv3ConvNextConfig(**_STAGES), "DINOv3ConvNextModel", _after(1), (64, 96), 32, 1, 4
    ),
    "SigLIP": Family(
        t.SiglipConfig(text_config=_TEXT, vision_config=_VIT), "SiglipVisionModel", _after(0), (56, 84)
    ),
    "SigLIP2": Family(
        t.Siglip2Config(text_config=_TEXT, vision_config={**_BLOCKS, "patch_size": 14, "num_patches": 16}),
        "Siglip2VisionModel",
        _naflex,
        (56, 84),
    ),
    "CLIP": Family(
        t.CLIPConfig(text_config=_TEXT, vision_config=_VIT),
        "CLIPVisionModel",
        _after(1, "post_layernorm"),
        (56, 84),
        prefix=1,
    ),
    "CLIP's vision tower": Family(
        t.CLIPVisionConfig(**_VIT), "CLIPVisionModel", _after(1, "post_layernorm"), (56, 84), prefix=1
    ),
    "SAM": Family(
        t.SamConfig(
            vision_config=_SAM,
            prompt_encoder_config={"hidden_size": 32, "image_size": 64, "patch_size": 16},
            mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4},
        ),
        "SamVisionModel",
        _map(),
        (64, 64),
        32,
    ),
    "ViT": Family(t.ViTConfig(**_VIT), "ViTModel", _after(1), (56, 84), prefix=1),
    "BEiT": Family(t.BeitConfig(**_VIT), "BeitModel", _after(1, "pooler.layernorm"), (56, 84), prefix=1),
    "Swin": Family(t.SwinConfig(**_SWIN), "SwinModel", _after(0), (64, 96), 128, levels=4),
    "ConvNeXt": Family(
        t.ConvNextConfig(**_STAGES), "ConvNextModel", _map("layernorm"), (64, 96), 32, levels=4
    ),
    "ConvNeXtV2": Family(
        t.ConvNextV2Config(**_STAGES), "ConvNextV2Model", _map("layernorm"), (64, 96), 32, levels=4
    ),
}


def save(name: str, folder: Path) -> Path:
    """The family's instance as ``save_pretrained`` writes it, with values that are not 0 or 1."""
    torch.manual_seed(0)
    net = t.AutoModel.from_config(FAMILIES[name].config)
    shake(net).save_pretrained(folder)
    t.ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


def shake(net: Any) -> Any:
    """``net`` with noise on every parameter, because many begin as 0 or 1."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def tower(name: str, folder: Path) -> Any:
    """The class that reads images, loaded by its name."""
    return getattr(t, FAMILIES[name].tower).from_pretrained(folder).eval()


def normalise(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) 0..255 as the saved preprocessor says."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std
