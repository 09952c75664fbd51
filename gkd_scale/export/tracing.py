"""A module as a graph: ``torch.export`` on an example whose sizes stand for all that are taken."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from gkd_scale.export.subject import INPUT, Shapes, Subject
from gkd_scale.types import Size

_LOGGERS = ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")
_WARNERS = (r"torch\.", r"onnxscript\.", r"onnx_ir\.", r"onnxruntime\.", r"copyreg", r"timm\.")


def trace(subject: Subject, shapes: Shapes) -> ExportedProgram:
    """The graph of what is exported; the input is called ``pixels``. Raises whatever torch raises."""
    example = torch.rand(1 if shapes is Shapes.ONE else 2, 3, *_size(subject, shapes))
    axes = {Shapes.ANY: (0, 2, 3), Shapes.BATCH: (0,), Shapes.ONE: ()}[shapes]
    dynamic = {INPUT: dict.fromkeys(axes, Dim.DYNAMIC)} if axes else None
    with quiet(), torch.no_grad():
        return torch.export.export(subject.graph(), (example,), dynamic_shapes=dynamic, strict=False)


def _size(subject: Subject, shapes: Shapes) -> Size:
    """The size to trace at; if any is taken, one that no branch of a network singles out.

    It is not square, and not the architecture's own, at which positions are not resampled.
    """
    height, width = subject.image_size
    if shapes is not Shapes.ANY:
        return height, width
    step = max(subject.backbone.stride, 32)
    base = max(step, height // step * step)
    return base + step, base + 3 * step


def names(graph_outputs: tuple[str, ...], values: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs by name, float32 on the CPU."""
    return {name: value.float().cpu() for name, value in zip(graph_outputs, values, strict=True)}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's and onnxscript's exporters say of themselves; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for module in _WARNERS:
                for kind in (DeprecationWarning, FutureWarning, UserWarning):
                    warnings.filterwarnings("ignore", category=kind, module=module)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
