"""Real images to check an export on: the user's, those the run was trained on, or rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gkd_scale import scenes
from gkd_scale.cache.manifest import is_complete
from gkd_scale.cache.plan import make_plan
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.source import Source, open_source
from gkd_scale.cache.stored import pixel_cache
from gkd_scale.cache.views import decode
from gkd_scale.errors import DataError, GkdError
from gkd_scale.images import UnreadableImage, open_bytes, open_image
from gkd_scale.report.runs import Run
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.inference import prepare
from gkd_scale.types import Size, UInt8Array


class Pixels(NamedTuple):
    """``images`` (N, 3, H, W) uint8 of one size, and where they are from."""

    images: Tensor
    source: str


def find(images: str | None, history: Run | None, size: Size, count: int) -> Pixels:
    """``count`` images or as many as there are, cut to ``size``; DataError if ``images`` has none."""
    if images is not None:
        return Pixels(_stack(_of_place(images, count), size), images)
    for place in _trained_on(history):
        try:
            pictures = _of_training(place, count)
        except (GkdError, OSError):  # moved since, or remote: try others
            continue
        return Pixels(_stack(pictures, size), place)
    renders = [scenes.render("source", index)[0] for index in range(count)]
    return Pixels(_stack(renders, size), "the embedded scenes")


def _trained_on(history: Run | None) -> Iterator[str]:
    """The data of a run's trainings, the last one's first."""
    for phase in reversed(history.phases if history else []):
        yield from phase.data()
        live = phase.config.get("live") or {}
        if live.get("images"):
            yield str(live["images"])


def _of_training(place: str, count: int) -> list[UInt8Array]:
    name, colon, _ = place.partition(":")
    if colon and (name in registry.ADAPTERS or name == registry.CACHE):
        dataset = registry.open_dataset(place)
        return [dataset[index].image for index in _spread(len(dataset), count)]
    if is_complete(Path(place)):
        cache = pixel_cache(Cache.open(place))
        views = (cache.read(0, index).jpeg for index in _spread(cache.num_samples, count))
        return [np.ascontiguousarray(decode(jpeg).transpose(1, 2, 0)) for jpeg in views]
    return _of_place(place, count)


def _of_place(images: str, count: int) -> list[UInt8Array]:
    """Images of a folder, a list, tars, a URL or a labelled dataset, evenly spread; DataError."""
    source: Source | None = registry.open_labels(images, quiet=True) or open_source(images)
    names = sorted(entry.path for entry in make_plan(images, 1, source=source))
    pictures = []
    for index in _spread(len(names), count):
        try:
            picture = (
                open_bytes(source.read(names[index])) if source else open_image(Path(images) / names[index])
            )
        except (OSError, UnreadableImage):
            continue
        pictures.append(np.asarray(picture.image))
    if not pictures:
        raise DataError(f"no image of {images} can be read", "check --images")
    return pictures


def _spread(total: int, count: int) -> list[int]:
    number = min(total, count)
    return [place * total // number for place in range(number)]


def _stack(images: Sequence[UInt8Array], size: Size) -> Tensor:
    """Images (h, w, 3) of any sizes, scaled until they cover ``size`` and cut to its middle."""
    crops = []
    for image in images:
        pixels = prepare(image, size)
        top, left = ((side - target) // 2 for side, target in zip(pixels.shape[1:], size, strict=True))
        crops.append(pixels[:, top : top + size[0], left : left + size[1]])
    return torch.stack(crops)
