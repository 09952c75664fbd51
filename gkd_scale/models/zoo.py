"""A table of students: what timm offers from 1 M to 1 B parameters, counted once and kept as ``zoo.csv``.

Any timm name can be a student; these are the ones that ``gkd-scale students`` compares. Reading the table
imports neither torch nor timm. ``python -m gkd_scale.models.zoo`` counts it anew, on torch's meta device.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_scale.models import rows

TABLE = Path(__file__).parent / "zoo.csv"
IMAGE_SIDE = 224

NAMES: dict[str, tuple[str, ...]] = {
    "ViT": (
        "vit_tiny_patch16_224",
        "vit_small_patch16_224",
        "vit_base_patch16_224",
        "vit_large_patch16_224",
        "vit_huge_patch14_224",
        "vit_giant_patch14_224",
    ),
    "DeiT": (
        "deit_tiny_patch16_224",
        "deit_small_patch16_224",
        "deit_base_patch16_224",
        "deit3_medium_patch16_224",
        "deit3_large_patch16_224",
        "deit3_huge_patch14_224",
    ),
    "DINO": ("vit_small_patch16_224.dino", "vit_base_patch16_224.dino"),
    "DINOv2": (
        "vit_small_patch14_dinov2",
        "vit_base_patch14_dinov2",
        "vit_large_patch14_dinov2",
        "vit_giant_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch14_reg4_dinov2",
        "vit_large_patch14_reg4_dinov2",
    ),
    "DINOv3": (
        "vit_small_patch16_dinov3",
        "vit_small_plus_patch16_dinov3",
        "vit_base_patch16_dinov3",
        "vit_large_patch16_dinov3",
        "vit_huge_plus_patch16_dinov3",
        "convnext_tiny.dinov3_lvd1689m",
        "convnext_base.dinov3_lvd1689m",
    ),
    "EVA02": (
        "eva02_tiny_patch14_224",
        "eva02_small_patch14_224",
        "eva02_base_patch14_224",
        "eva02_large_patch14_224",
    ),
    "Swin": (
        "swin_tiny_patch4_window7_224",
        "swin_small_patch4_window7_224",
        "swin_base_patch4_window7_224",
        "swin_large_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "swinv2_small_window8_256",
        "swinv2_base_window8_256",
    ),
    "ConvNeXt": (
        "convnext_atto",
        "convnext_femto",
        "convnext_pico",
        "convnext_nano",
        "convnext_tiny",
        "convnext_small",
        "convnext_base",
        "convnext_large",
        "convnext_xlarge",
        "convnext_xxlarge",
        "convnextv2_atto",
        "convnextv2_nano",
        "convnextv2_base",
        "convnextv2_huge",
    ),
    "ResNet": ("resnet10t", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "MobileNetV4": (
        "mobilenetv4_conv_small_050",
        "mobilenetv4_conv_small",
        "mobilenetv4_conv_medium",
        "mobilenetv4_hybrid_medium",
        "mobilenetv4_conv_large",
        "mobilenetv4_hybrid_large",
    ),
    "EfficientViT": (
        "efficientvit_b0",
        "efficientvit_b1",
        "efficientvit_b2",
        "efficientvit_b3",
        "efficientvit_l1",
        "efficientvit_l2",
        "efficientvit_l3",
        "efficientvit_m0",
        "efficientvit_m2",
        "efficientvit_m5",
    ),
}


@dataclass(frozen=True)
class Row:
    """One student on square images of ``IMAGE_SIDE`` pixels.

    ``stride`` in pixels: the patch size of a plain transformer, else that of the last stage; ``depth`` in
    blocks, by stage if there are stages; ``width`` and ``grid`` (side) of the features; ``gflops`` of one
    image forward, 2 FLOP a multiply-add; ``largest_layer`` in parameters.
    """

    name: str
    family: str
    parameters: int
    stride: int
    width: int
    depth: str
    grid: int
    gflops: float
    largest_layer: int


def read(path: Path = TABLE) -> list[Row]:
    """The table, smallest student first."""
    return rows.read(Row, path)


def count(name: str, family: str) -> Row:
    """The row of a timm model, counted."""
    import torch

    from gkd_scale.models import spec as specs
    from gkd_scale.models.cost import cost
    from gkd_scale.models.families import stride

    costs = cost(name, (IMAGE_SIDE, IMAGE_SIDE))
    with torch.device("meta"):
        net: Any = specs.create(specs.resolve(name)[0])
    return Row(
        name=name,
        family=family,
        parameters=costs.parameters,
        stride=stride(net),
        width=costs.dim,
        depth=_depth(net),
        grid=costs.grid[0],
        gflops=costs.gflops,
        largest_layer=costs.largest_layer,
    )


def _depth(net: Any) -> str:
    """Blocks, by stage if there are stages: ``12``, ``2-2-6-2``."""
    stages = next((getattr(net, key) for key in ("stages", "layers", "blocks") if hasattr(net, key)), None)
    if stages is None:
        stages = [net.layer1, net.layer2, net.layer3, net.layer4]
    parts = [getattr(stage, "blocks", stage) for stage in stages]
    try:
        return "-".join(str(len(part)) for part in parts)
    except TypeError:  # a plain transformer's blocks
        return str(len(parts))


def write(path: Path = TABLE) -> None:
    """Count every student of ``NAMES`` and write the table."""
    rows.write([count(name, family) for family, names in NAMES.items() for name in names], path)


if __name__ == "__main__":
    write()
