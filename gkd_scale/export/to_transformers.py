"""A folder that ``AutoModel`` and ``AutoImageProcessor`` read: timm's, as transformers' TimmWrapper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging

from gkd_scale.export.subject import How, Loaded, Shapes, Subject
from gkd_scale.export.to_timm import outputs
from gkd_scale.models import hub
from gkd_scale.models.teachers import Normalize

FIXED = False


def write(subject: Subject, folder: Path, how: How) -> None:  # noqa: ARG001
    """``config.json`` and ``model.safetensors``."""
    hub.save(
        folder,
        subject.backbone.net,
        subject.backbone.spec,
        subject.image_size,
        model_type="timm_wrapper",
        architectures=["TimmWrapperModel"],
        do_pooling=True,
    )


def load(folder: Path, subject: Subject, shapes: Shapes) -> Loaded:  # noqa: ARG001
    """The model as transformers loads it, pixels normalised as its image processor says."""
    with _quiet():
        model: Any = AutoModel.from_pretrained(folder).eval()
        said: Any = AutoImageProcessor.from_pretrained(folder).data_config
    normalize = Normalize(said["mean"], said["std"])

    @torch.no_grad()
    def run(pixels: Tensor) -> dict[str, Tensor]:
        x = normalize(255 * pixels)
        return outputs(model.timm_model, x, model(pixel_values=x).last_hidden_state)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and remarks; errors are raised all the same."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
