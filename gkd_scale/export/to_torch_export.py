"""``model.pt2``: a program of ``torch.export``, which torch alone loads and runs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gkd_scale.export.subject import Forward, How, Shapes, Subject
from gkd_scale.export.tracing import names, quiet, trace

FILE = "model.pt2"
FIXED = True


def write(subject: Subject, folder: Path, how: How) -> None:
    """``model.pt2``."""
    program = trace(subject, how.shapes)
    with quiet():
        torch.export.save(program, folder / FILE)


def load(folder: Path, subject: Subject, shapes: Shapes) -> Forward:  # noqa: ARG001
    """The program as ``torch.export.load`` reads it."""
    with quiet():
        module = torch.export.load(folder / FILE).module()
    outputs = subject.graph().outputs

    @torch.no_grad()
    def run(pixels: Tensor) -> dict[str, Tensor]:
        return names(outputs, module(pixels))

    return run
