"""A folder that ``AutoModel`` and ``AutoImageProcessor`` read.

A student that came from transformers goes back to its own family; any other network is written as
transformers' TimmWrapper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from gkd_scale.export.subject import Forward, How, Shapes, Subject, tokens
from gkd_scale.export.to_timm import outputs
from gkd_scale.models import checkpoints, families, hf, hub, twins
from gkd_scale.models.teachers import Normalize

FIXED = False


def write(subject: Subject, folder: Path, how: How) -> None:  # noqa: ARG001
    """``config.json`` and ``model.safetensors``, and ``preprocessor_config.json`` of a family's own."""
    backbone = subject.backbone
    if backbone.spec.origin is not None:
        twins.write(folder, backbone.net, backbone.spec, subject.image_size)
        return
    hub.save(
        folder,
        backbone.net,
        backbone.spec,
        subject.image_size,
        model_type="timm_wrapper",
        architectures=["TimmWrapperModel"],
        do_pooling=True,
    )


def load(folder: Path, subject: Subject, shapes: Shapes) -> Forward:  # noqa: ARG001
    """The model as transformers loads it, pixels normalised as its image processor says."""
    return _own_family(folder, subject) if subject.backbone.spec.origin is not None else _timm_wrapper(folder)


def _own_family(folder: Path, subject: Subject) -> Forward:
    checkpoint, net = twins.load(folder)
    normalize = Normalize(*checkpoints.normalisation(checkpoint))
    has_cls = families.has_cls(subject.backbone.net)

    @torch.no_grad()
    def run(pixels: Tensor) -> dict[str, Tensor]:
        features, _ = hf.dense(net, checkpoint.config, normalize(255 * pixels))
        return tokens(features, has_cls=has_cls)

    return run


def _timm_wrapper(folder: Path) -> Forward:
    with checkpoints.quiet():
        model: Any = AutoModel.from_pretrained(folder).eval()
        config: Any = AutoImageProcessor.from_pretrained(folder).data_config
    normalize = Normalize(config["mean"], config["std"])

    @torch.no_grad()
    def run(pixels: Tensor) -> dict[str, Tensor]:
        x = normalize(255 * pixels)
        return outputs(model.timm_model, x, model(pixel_values=x).last_hidden_state)

    return run
