"""The training set of stage 2 and the order of its images, as the options say."""

from __future__ import annotations

from itertools import accumulate, pairwise

from gkd_scale import console
from gkd_scale.errors import DataError
from gkd_scale.segment import class_pixels
from gkd_scale.segment.config import Stage2Config
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.datasets.registry import Datasets
from gkd_scale.segment.sampling import Mixture, Order, RareClass, Uniform
from gkd_scale.types import Int64Array


def open_training_set(config: Stage2Config) -> Datasets:
    """All ``--train``, each cut to ``--label-fraction``."""
    return registry.open_all(config.data.train_sets(), config.data.label_share())


def count_pixels(config: Stage2Config, dataset: Datasets) -> Int64Array | None:
    """Count each class's pixels if the order needs the counts and the run lacks them. Rank 0 only.

    Writes the counts into the run's folder; a dry run returns them instead.
    """
    if (
        config.data.sampling == "rare-class"
        and class_pixels.read(config.run.out, _identity(config, dataset)) is None
    ):
        with console.progress() as progress:
            task = progress.add_task("counting pixels of each class", total=len(dataset))
            pixels = class_pixels.count(dataset, config.run.workers, lambda: progress.advance(task))
        if not pixels.any():
            raise DataError("no pixel of the training labels has a class", "check the labels of --train")
        if config.run.dry_run:
            return pixels
        class_pixels.write(config.run.out, pixels, dataset, _identity(config, dataset))
    return None


def order_of(config: Stage2Config, dataset: Datasets, pixels: Int64Array | None = None) -> Order:
    """Uniform or rare-class order, mixed if weights are given.

    ``pixels`` is what :func:`count_pixels` returns: None if it wrote the counts.
    """
    if pixels is None and config.data.sampling == "rare-class":
        pixels = class_pixels.read(config.run.out, _identity(config, dataset))
    if config.data.train_weights is None:
        return _order(config, len(dataset), pixels)
    sizes = [len(part) for part in dataset.parts]
    orders = [
        _order(config, stop - start, None if pixels is None else pixels[start:stop], "source", index)
        for index, (start, stop) in enumerate(pairwise([0, *accumulate(sizes)]))
    ]
    return Mixture(config.run.seed, sizes, config.data.train_weights, orders)


def _order(config: Stage2Config, images: int, pixels: Int64Array | None, *key: str | int) -> Order:
    if pixels is None:
        return Uniform(config.run.seed, images, *key)
    return RareClass(config.run.seed, pixels, config.data.sampling_temperature, *key)


def _identity(config: Stage2Config, dataset: Datasets) -> dict[str, object]:
    """The training set that the counts belong to."""
    return {
        "train": config.data.train_sets(),
        "label_fraction": str(config.data.label_share()),
        "images": [len(part) for part in dataset.parts],
        "classes": list(dataset.classes),
    }
