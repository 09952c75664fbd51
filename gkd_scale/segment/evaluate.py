"""``gkd-scale evaluate``: the mIoU of a finished stage-2 run on any number of domains."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from rich.table import Table

from gkd_scale import console, files
from gkd_scale.errors import ConfigError, DataError
from gkd_scale.segment.config import EvaluateConfig
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.export import load_segmenter
from gkd_scale.segment.inference import confusion
from gkd_scale.segment.metrics import Confusion
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import SegDataset, Size


class DomainResult(TypedDict):
    """``miou`` and ``iou`` are 0..100; a class that does not occur is None."""

    miou: float
    iou: dict[str, float | None]
    images: int


def evaluate(config: EvaluateConfig) -> dict[str, DomainResult]:
    """Score ``config.run`` on each domain, print the table, and write the JSON.

    All datasets are opened, and their classes compared with the run's, before the first is scored.
    Raises ConfigError, RunError, ModelError or DataError.
    """
    domains = config.domains()
    device = pick_device(config.device)
    segmenter, card = load_segmenter(config.run)
    datasets = {name: _open(ref, card.classes, config) for name, ref in domains.items()}
    segmenter.to(device)
    results = {
        name: _score(name, segmenter, dataset, card.image_size, config, device)
        for name, dataset in datasets.items()
    }
    path = config.json or config.run / "evaluation.json"
    files.write_json(path, results)
    console.out.print(table(results, card.classes))
    console.out.print(f"written to {path}")
    return results


def _open(ref: str, classes: Sequence[str], config: EvaluateConfig) -> SegDataset:
    dataset = registry.open_dataset(ref)
    registry.require_classes(dataset, classes, ref, str(config.run))
    return dataset


def _score(
    name: str,
    segmenter: Segmenter,
    dataset: SegDataset,
    size: Size,
    config: EvaluateConfig,
    device: torch.device,
) -> DomainResult:
    started, done = time.perf_counter(), 0
    with console.progress("{task.fields[rate]}") as progress:
        task = progress.add_task(name, total=len(dataset), rate="")

        def advance(images: int) -> None:
            nonlocal done
            done += images
            rate = done / (time.perf_counter() - started)
            progress.update(task, advance=images, rate=f"{rate:.1f} images/s")

        counted = confusion(
            segmenter,
            dataset,
            size,
            batch_size=config.batch_size,
            workers=config.workers,
            device=device,
            advance=advance,
        )
    return _result(name, counted, dataset)


def _result(name: str, counted: Confusion, dataset: SegDataset) -> DomainResult:
    if not counted.counts.any():
        raise DataError(f"domain '{name}' has no labelled pixel: all labels are ignored", "check its labels")
    return {
        "miou": 100 * counted.miou(),
        "iou": counted.report(dataset.classes),
        "images": len(dataset),
    }


def table(results: Mapping[str, DomainResult], classes: Sequence[str]) -> Table:
    """IoU in percent: classes by domains, the mean last; '–' where a class does not occur."""
    shown = Table(title="IoU in %, at ground-truth size")
    shown.add_column("class")
    for name in results:
        shown.add_column(name, justify="right")
    for each in classes:
        values = (result["iou"][each] for result in results.values())
        shown.add_row(each, *("–" if value is None else f"{value:.1f}" for value in values))
    shown.add_section()
    shown.add_row("mIoU", *(f"{result['miou']:.2f}" for result in results.values()), style="bold")
    shown.add_row("images", *(str(result["images"]) for result in results.values()), style="dim")
    return shown


def pick_device(text: str) -> torch.device:
    """``auto`` (a GPU if there is one) or a torch device; ConfigError where it cannot be used."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device '{text}' cannot be used: {reason}", "use auto or cpu") from None
    return device
