"""``gkd-scale evaluate``: the mIoU of a finished stage-2 run on any number of domains.

Under a launcher (``launchers/evaluate.py``) each rank scores every ``world``-th image and the confusion
matrices are added, so that every image counts once on any number of ranks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypedDict

import torch
from rich.table import Table

from gkd_scale import console, files
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import ConfigError, GkdError
from gkd_scale.segment.config import EvaluateConfig, LookConfig
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.export import Card, load_segmenter
from gkd_scale.segment.inference import Inference, Model, confusion
from gkd_scale.segment.metrics import Confusion, mean_iou
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import SegDataset, Size


class DomainResult(TypedDict):
    """``miou`` and ``iou`` are 0..100; a class that does not occur is None. ``inference``: the settings.

    ``without`` names the classes that occur in no training label, or in no label of the domain: ``miou`` is
    over the others.
    """

    miou: float
    without: list[str]
    iou: dict[str, float | None]
    images: int
    inference: dict[str, Any]


def evaluate(config: EvaluateConfig, runtime: Runtime | None = None) -> dict[str, DomainResult]:
    """Score ``config.run`` on each domain, print the table, and write the JSON. Collective.

    All datasets are opened and their classes compared with the run's before the first is scored.
    Raises ConfigError, RunError, ModelError or DataError.
    """
    domains = config.domains()
    runtime = on_device(runtime, config.device)
    segmenter, card = load_segmenter(config.run)
    how = how_to_look(config, card)
    datasets: dict[str, SegDataset] = {}
    for name, ref in domains.items():
        datasets[name] = registry.open_dataset(ref)
        registry.require_classes(datasets[name], card.classes, ref, str(config.run))
    for dataset in datasets.values():
        registry.glance(dataset, quiet=not runtime.main)
    segmenter.to(runtime.device)
    results = {
        name: _score(name, segmenter, dataset, card, how, config, runtime)
        for name, dataset in datasets.items()
    }
    path = config.json or config.run / "evaluation.json"
    runtime.on_main(lambda: files.write_json(path, results, unlocked=True))
    if runtime.main:
        console.out.print(table(results, card.classes))
        console.say(f"written to {path}")
    return results


def on_device(runtime: Runtime | None, device: str) -> Runtime:
    """The runtime of this process, on ``device``; "auto" keeps the runtime's own."""
    if runtime is None:
        return Runtime(0, 1, pick_device(device))
    return runtime if device == "auto" else replace(runtime, device=pick_device(device))


def how_to_look(config: LookConfig, card: Card) -> Inference:
    """The inference settings: those of the options, else those of the run's validation."""
    explicit = config.inference.mode is not None
    windows = config.inference.windows(card.image_size) if explicit else card.windows
    return Inference(windows, config.tta_scales, config.tta_flip)


def _score(
    name: str,
    segmenter: Segmenter,
    dataset: SegDataset,
    card: Card,
    how: Inference,
    config: EvaluateConfig,
    runtime: Runtime,
) -> DomainResult:
    start = time.perf_counter()
    share = len(range(runtime.rank, len(dataset), runtime.world))
    with rate_bar(name, share, visible=runtime.main) as advance:
        total = confusion_of_ranks(
            segmenter,
            dataset,
            card.image_size,
            runtime,
            how=how,
            batch_size=config.batch_size,
            workers=config.workers,
            advance=advance,
        )
    if runtime.main:
        seconds = time.perf_counter() - start
        ranks = f" on {runtime.world} ranks" if runtime.world > 1 else ""
        console.say(
            f"{name}: {len(dataset)} images in {seconds:.1f} s{ranks}, {len(dataset) / seconds:.1f} images/s"
        )
    mean = mean_iou(f"domain '{name}'", total, dataset, card.absent)
    return {
        "miou": mean.miou,
        "without": mean.without,
        "iou": total.report(dataset.classes),
        "images": len(dataset),
        "inference": how.facts(),
    }


@contextmanager
def rate_bar(title: str, images: int, *, visible: bool) -> Iterator[Callable[[int], None]]:
    """A bar with rate and ETA; yields a function that counts so many images, from any thread."""
    start, lock, number = time.perf_counter(), threading.Lock(), 0
    with console.progress("{task.fields[rate]}", disable=not visible) as progress:
        task = progress.add_task(title, total=images, rate="")

        def advance(count: int) -> None:
            nonlocal number
            with lock:
                number += count
                rate = number / (time.perf_counter() - start)
            progress.update(task, advance=count, rate=f"{rate:.1f} images/s")

        yield advance


def confusion_of_ranks(
    model: Model, dataset: SegDataset, size: Size, runtime: Runtime, **options: Any
) -> Confusion:
    """The confusion over all of ``dataset``; ``options`` are those of :func:`.confusion`. Collective.

    Each rank counts every ``world``-th image, so none is counted twice.
    """
    indices = range(runtime.rank, len(dataset), runtime.world)
    try:
        local = confusion(model, dataset, size, indices=indices, device=runtime.device, **options)
    except GkdError as error:
        error.on_rank = runtime.rank
        raise
    return Confusion(local.classes, runtime.sum(local.counts))


def table(results: Mapping[str, DomainResult], classes: Sequence[str]) -> Table:
    """IoU in percent: classes by domains, the mean last; '–' if a class does not occur."""
    grid = Table(title="IoU in %, at ground-truth size")
    grid.add_column("class")
    for name in results:
        grid.add_column(name, justify="right")
    for class_name in classes:
        values = (result["iou"][class_name] for result in results.values())
        grid.add_row(class_name, *("–" if value is None else f"{value:.1f}" for value in values))
    grid.add_section()
    grid.add_row("mIoU", *(f"{result['miou']:.2f}" for result in results.values()), style="bold")
    if any(result["without"] for result in results.values()):
        counts = (len(classes) - len(result["without"]) for result in results.values())
        grid.add_row("classes", *(f"{count} of {len(classes)}" for count in counts), style="bold")
    grid.add_row("images", *(str(result["images"]) for result in results.values()), style="dim")
    return grid


def pick_device(text: str) -> torch.device:
    """``auto`` (a GPU if the machine has one) or a torch device; ConfigError if it cannot be used."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device '{text}' cannot be used: {reason}", "use auto or cpu") from None
    return device
