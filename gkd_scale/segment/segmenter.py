"""A backbone and a head as one module, which stage 2 trains and evaluate applies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from gkd_scale.models.backbone import Backbone
from gkd_scale.segment.augment import Colour, SegBatch
from gkd_scale.segment.heads.base import SegHead
from gkd_scale.types import Size


class Segmenter(nn.Module):
    """``frozen``: the backbone gets no gradient, except its ``last_blocks`` last blocks.

    Frozen modules stay in eval mode, also after ``train()``. ``kept`` names the backbone's tensors that
    training must not change.
    """

    def __init__(
        self, backbone: Backbone, head: SegHead, *, frozen: bool = True, last_blocks: int = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = frozen and not last_blocks
        self.backbone.requires_grad_(not frozen)
        for name in backbone.last_blocks(last_blocks) if frozen else ():
            backbone.net.get_parameter(name).requires_grad_(True)
        self.kept = frozenset(_frozen_tensors(backbone))
        self.train()

    @property
    def stride(self) -> int:
        """Image sides must be multiples of it."""
        return self.backbone.stride

    @property
    def fill(self) -> Colour:
        """RGB of padding: the pixel that normalises to about zero."""
        red, green, blue = (round(255 * value) for value in self.backbone.mean)
        return red, green, blue

    def train(self, mode: bool = True) -> Segmenter:
        super().train(mode)
        for module in self.backbone.modules():
            flags = [parameter.requires_grad for parameter in module.parameters()]
            if flags and not any(flags):
                module.eval()
        return self

    def features(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, H, W) 0..255 to four maps; without a graph if the backbone is frozen."""
        if self.frozen:
            with torch.no_grad():
                return self.backbone(pixels)
        return self.backbone(pixels)

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) 0..255 to (B, K, H, W); H and W multiples of ``stride``."""
        size: Size = (pixels.shape[-2], pixels.shape[-1])
        return cast(Tensor, self.head(self.features(pixels), size))

    def forward(self, batch: SegBatch) -> dict[str, Tensor]:
        """The head's named losses on a batch on any device; ``loss`` is minimised."""
        device = next(self.parameters()).device
        pixels, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        return self.head.losses(self.features(pixels), labels)


def _frozen_tensors(backbone: nn.Module) -> Iterator[str]:
    """State-dict names of frozen parameters, and of the buffers of modules without trained parameters."""
    learnable = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    owners = {name.rpartition(".")[0] for name in learnable}
    for name in backbone.state_dict():
        if name not in learnable and name.rpartition(".")[0] not in owners:
            yield name
