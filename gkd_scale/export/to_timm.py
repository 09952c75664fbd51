"""A folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads; see ``models/hub.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_scale.export.subject import Forward, How, Shapes, Subject, tokens
from gkd_scale.models import families, hub
from gkd_scale.models.teachers import Normalize

FIXED = False


def write(subject: Subject, folder: Path, how: How) -> None:  # noqa: ARG001
    """``config.json`` and ``model.safetensors``."""
    hub.save(folder, subject.backbone.net, subject.backbone.spec, subject.image_size)


def load(folder: Path, subject: Subject, shapes: Shapes) -> Forward:  # noqa: ARG001
    """The network as plain timm loads it, pixels normalised as its own config says."""
    net: Any = hub.load(folder)
    normalize = Normalize(net.pretrained_cfg["mean"], net.pretrained_cfg["std"])

    @torch.no_grad()
    def run(pixels: Tensor) -> dict[str, Tensor]:
        x = normalize(255 * pixels)
        return outputs(net, x, net.forward_features(x))

    return run


def outputs(net: torch.nn.Module, x: Tensor, output: Tensor) -> dict[str, Tensor]:
    """Tokens of what ``forward_features`` gives for normalised pixels ``x``."""
    features, _ = families.finish(net, x, output)
    return tokens(features, has_cls=families.has_cls(net))
