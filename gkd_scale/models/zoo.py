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
        *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        *(f"vit_{size}_patch14_224" for size in ("huge", "giant")),
    ),
    "DeiT": (
        *(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")),
        *("deit3_medium_patch16_224", "deit3_large_patch16_224", "deit3_huge_patch14_224"),
    ),
    "DINO": ("vit_small_patch16_224.dino", "vit_base_patch16_224.dino"),
    "DINOv2": (
        *(f"vit_{size}_patch14_dinov2" for size in ("small", "base", "large", "giant")),
        *(f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large")),
    ),
    "DINOv3": (
        *(f"vit_{size}_patch16_dinov3" for size in ("small", "small_plus", "base", "large", "huge_plus")),
        *(f"convnext_{size}.dinov3_lvd1689m" for size in ("tiny", "base")),
    ),
    "EVA02": tuple(f"eva02_{size}_patch14_224" for size in ("tiny", "small", "base", "large")),
    "Swin": (
        *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")),
        *(f"swinv2_{size}_window8_256" for size in ("tiny", "small", "base")),
    ),
    "ConvNeXt": (
        *(f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small")),
        *(f"convnext_{size}" for size in ("base", "large", "xlarge", "xxlarge")),
        *(f"convnextv2_{size}" for size in ("atto", "nano", "base", "huge")),
    ),
    "ResNet": ("resnet10t", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "MobileNetV4": (
        *("mobilenetv4_conv_small_050", "mobilenetv4_conv_small", "mobilenetv4_conv_medium"),
        *("mobilenetv4_hybrid_medium", "mobilenetv4_conv_large", "mobilenetv4_hybrid_large"),
    ),
    "EfficientViT": tuple(
        f"efficientvit_{size}" for size in ("b0", "b1", "b2", "b3", "l1", "l2", "l3", "m0", "m2", "m5")
    ),
}


@dataclass(frozen=True)
class StudentRow:
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


def read(path: Path = TABLE) -> list[StudentRow]:
    """The table, smallest student first."""
    return rows.read(StudentRow, path)


def count(name: str, family: str) -> StudentRow:
    """The row of a timm model, counted."""
    import torch

    from gkd_scale.models import spec as specs
    from gkd_scale.models.cost import cost
    from gkd_scale.models.families import stride

    costs = cost(name, (IMAGE_SIDE, IMAGE_SIDE))
    with torch.device("meta"):
        net: Any = specs.create(specs.resolve(name)[0])
    return StudentRow(
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
