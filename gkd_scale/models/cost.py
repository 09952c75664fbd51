"""What a network costs, without its weights: built on torch's meta device, nothing is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gkd_scale.models import spec as specs
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.families import dense, levels
from gkd_scale.models.teachers import check_divisible, check_layers
from gkd_scale.types import Grid, Size


@dataclass(frozen=True)
class Cost:
    """``flops`` of one image forward (2 a multiply-add); ``parameters`` in all and of the largest layer."""

    flops: int
    parameters: int
    largest_layer: int
    dim: int
    grid: Grid

    @property
    def gflops(self) -> float:
        """In 10^9, three digits, as tables of models have it."""
        return float(f"{self.flops / 1e9:.3g}")


def of_teacher(config: TeacherConfig, image_size: Size) -> Cost:
    """The cost of a timm teacher on images of ``image_size``; raises ModelError as loading would."""
    return cost(str(config.name), image_size, config.timm_args(), layers=config.layer or ())


def cost(
    name: str,
    image_size: Size,
    args: dict[str, Any] | None = None,
    *,
    layers: Sequence[int] = (),
) -> Cost:
    """The cost of a timm model on images of ``image_size``; raises ModelError as loading would."""
    spec, _ = specs.resolve(name, args)
    with torch.device("meta"):
        net: Any = specs.create(spec, image_size=image_size).eval()
        pixels = torch.zeros(1, 3, *image_size)
    check_divisible(net, image_size, name)
    check_layers(net, layers, name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features, grid = levels(net, pixels, layers) if layers else dense(net, pixels)
    dim = features.patches.shape[2]
    sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in net.modules()]
    return Cost(counter.get_total_flops(), sum(p.numel() for p in net.parameters()), max(sizes), dim, grid)
