"""The mIoU of a run and of its export on labelled data, counted alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from gkd_scale import console
from gkd_scale.export.subject import Forward, Shapes, Subject
from gkd_scale.export.verify import ExportedSegmenter
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.inference import Inference, Model, Windows, confusion
from gkd_scale.segment.metrics import mean_iou
from gkd_scale.types import SegDataset


@dataclass(frozen=True)
class MiouChange:
    """mIoU 0..100 of the run in PyTorch and of the export, on ``images`` of a domain."""

    domain: str
    images: int
    run: float
    export: float

    def line(self) -> str:
        """For people."""
        return (
            f"{self.domain}: mIoU {self.run:.2f} in PyTorch, {self.export:.2f} exported: "
            f"{self.export - self.run:+.2f} ({self.images} images)"
        )


def open_domains(subject: Subject, domains: Mapping[str, str]) -> dict[str, SegDataset]:
    """The datasets by name; DataError or ConfigError if one is no such data or has other classes."""
    datasets = {}
    for name, ref in domains.items():
        dataset = registry.open_dataset(ref)
        assert subject.card is not None
        registry.require_classes(dataset, subject.card.classes, ref, str(subject.run))
        registry.glance(dataset)
        datasets[name] = dataset
    return datasets


@torch.no_grad()
def cost(subject: Subject, forward: Forward, shapes: Shapes, name: str, dataset: SegDataset) -> MiouChange:
    """Score both on ``dataset``, with progress."""
    assert subject.segmenter is not None and subject.card is not None
    how = _how(subject, shapes)
    both: tuple[Model, Model] = (subject.segmenter, ExportedSegmenter(forward, shapes))
    with console.progress() as progress:
        advance = partial(progress.advance, progress.add_task(f"mIoU on {name}", total=2 * len(dataset)))
        counts = [confusion(model, dataset, subject.image_size, how=how, advance=advance) for model in both]
    scores = (mean_iou(f"domain '{name}'", count, dataset, subject.card.absent).miou for count in counts)
    return MiouChange(name, len(dataset), *scores)


def _how(subject: Subject, shapes: Shapes) -> Inference:
    """As the run was validated; by windows of the one size if the export takes no other."""
    assert subject.card is not None
    if shapes is Shapes.ANY:
        return Inference(subject.card.windows)
    height, width = subject.image_size
    return Inference(Windows(subject.image_size, (round(height * 2 / 3), round(width * 2 / 3))))
