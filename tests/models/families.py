"""A tiny instance of every family of students: what timm makes of it takes milliseconds."""

from __future__ import annotations

from typing import Any, NamedTuple

from gkd_scale.types import Size
from tests.conftest import TINY

_VIT = {key: value for key, value in TINY.items() if key != "patch_size"}
_AT_16 = {"patch_size": 16, "img_size": 128}
_SWIN = {"embed_dim": 16, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 2, 4]}
_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


class Family(NamedTuple):
    """``size`` of the images is not the architecture's own; ``batchnorm``: images of a batch touch."""

    name: str
    args: dict[str, Any]
    size: Size = (64, 96)
    cls: bool = False
    batchnorm: bool = False


FAMILIES = {
    "vit": Family("vit_tiny_patch16_224", _VIT, cls=True),
    "vit-gap": Family("vit_tiny_patch16_224", {**_VIT, "class_token": False, "global_pool": "avg"}),
    "deit": Family("deit_tiny_distilled_patch16_224", _VIT, cls=True),
    "dino": Family("vit_small_patch16_224.dino", _VIT, cls=True),
    "dinov2": Family("vit_small_patch14_dinov2.lvd142m", _VIT, (56, 84), cls=True),
    "dinov2-registers": Family("vit_small_patch14_reg4_dinov2.lvd142m", _VIT, (56, 84), cls=True),
    "dinov2-at-16": Family("vit_small_patch14_dinov2.lvd142m", {**_VIT, **_AT_16}, cls=True),
    "dinov3": Family("vit_small_patch16_dinov3.lvd1689m", _VIT, cls=True),
    "eva02": Family("eva02_tiny_patch14_224.mim_in22k", _VIT, (56, 84), cls=True),
    "eva02-at-16": Family("eva02_tiny_patch14_224.mim_in22k", {**_VIT, **_AT_16}, cls=True),
    "swin": Family("swin_tiny_patch4_window7_224", _SWIN),
    "swinv2": Family("swinv2_tiny_window8_256", _SWIN),
    "convnext": Family("convnext_atto", _CONVNEXT),
    "convnextv2": Family("convnextv2_atto", _CONVNEXT),
    "resnet": Family("resnet10t", {"channels": [8, 16, 24, 32], "stem_width": 8}, batchnorm=True),
    "mobilenetv4": Family("mobilenetv4_conv_small_035", {}, batchnorm=True),
    "efficientvit": Family("efficientvit_b0", {}, batchnorm=True),
    "efficientvit-m": Family("efficientvit_m0", {}, (128, 192), batchnorm=True),
}
