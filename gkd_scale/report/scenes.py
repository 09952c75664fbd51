"""Images as the models see them: prediction, errors and tokens of a domain's best and worst."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale.models import families
from gkd_scale.segment.finished import FinishedSegmenter
from gkd_scale.segment.inference import pad_to_stride, prepare
from gkd_scale.segment.metrics import Confusion
from gkd_scale.segment.pictures import palette_image
from gkd_scale.types import IGNORE, SegDataset, SegSample, UInt8Array

_LONG_SIDE = 320
_ERROR, _RIGHT, _IGNORED = (220, 50, 47), (235, 235, 235), (150, 150, 150)


@dataclass(frozen=True)
class Seen:
    """One image under one model: mIoU 0..100 of this image alone, and pictures as data URIs."""

    run: str
    miou: float
    prediction: str
    errors: str
    tokens: str


@dataclass(frozen=True)
class Scene:
    """One image of a domain: ``rank`` is best or worst, ``runs`` one :class:`Seen` a model."""

    name: str
    rank: str
    image: str
    label: str
    runs: list[Seen]


@dataclass(frozen=True)
class DomainLook:
    """What the models do on a domain: confusion by run over the images looked at, and chosen scenes."""

    images: int
    of: int
    confusion: dict[str, Confusion]
    scenes: list[Scene]


def look(
    models: Mapping[str, FinishedSegmenter],
    dataset: SegDataset,
    *,
    images: int,
    scenes: int,
    advance: Callable[[], object] = lambda: None,
) -> DomainLook:
    """Run every model on ``images`` of a dataset, evenly spaced (0: all), and picture the extremes.

    Images are ranked by their own mIoU, averaged over the models.
    """
    count = min(images or len(dataset), len(dataset))
    places = [place * len(dataset) // count for place in range(count)]
    total = {name: Confusion(len(dataset.classes)) for name in models}
    scores: list[float] = []
    for place in places:
        sample = dataset[place]
        each = {name: _predicted(model, sample)[1] for name, model in models.items()}
        for name, found in each.items():
            total[name] += found
        scores.append(float(np.mean([found.miou() for found in each.values()])))
        advance()
    order = [index for index in np.argsort(scores, kind="stable") if np.isfinite(scores[index])]
    worst = order[:scenes]
    best = [index for index in order[::-1][:scenes] if index not in worst]
    chosen = [("worst", index) for index in worst] + [("best", index) for index in best]
    shown = [_scene(rank, dataset[places[index]], models) for rank, index in chosen]
    return DomainLook(count, len(dataset), total, shown)


def _predicted(model: FinishedSegmenter, sample: SegSample) -> tuple[UInt8Array, Confusion]:
    """The class ids of an image, and their confusion with its label."""
    prediction = model.predict(sample.image)
    assert isinstance(prediction, np.ndarray)
    found = Confusion(len(model.classes))
    found.update(torch.from_numpy(prediction), torch.from_numpy(np.array(sample.label)))
    return prediction, found


def _scene(rank: str, sample: SegSample, models: Mapping[str, FinishedSegmenter]) -> Scene:
    palette = next(iter(models.values())).palette
    seen = []
    for name, model in models.items():
        prediction, found = _predicted(model, sample)
        pictures = (
            _mask(prediction, palette),
            _errors(prediction, sample.label),
            token_colours(model, sample.image),
        )
        seen.append(Seen(name, 100 * found.miou(), *map(data_uri, pictures)))
    image, label = Image.fromarray(sample.image), _mask(sample.label, palette)
    return Scene(sample.name, rank, data_uri(image, photo=True), data_uri(label), seen)


def _mask(label: UInt8Array, palette: tuple[tuple[int, int, int], ...]) -> Image.Image:
    full = [*palette, *[_IGNORED] * (IGNORE + 1 - len(palette))]
    return palette_image(np.ascontiguousarray(label), full).convert("RGB")


def _errors(prediction: UInt8Array, label: UInt8Array) -> Image.Image:
    """Wrong pixels in red, right ones light, ignored ones grey."""
    picture = np.full((*label.shape, 3), _RIGHT, np.uint8)
    picture[prediction != label] = _ERROR
    picture[label == IGNORE] = _IGNORED
    return Image.fromarray(picture)


@torch.no_grad()
def token_colours(model: FinishedSegmenter, image: UInt8Array) -> Image.Image:
    """The backbone's patch tokens as colours: their first three principal components over this image."""
    backbone = model.module.backbone
    pixels = prepare(image, model.image_size)[None].to(model.device)
    padded = pad_to_stride(pixels, model.module.stride, model.module.fill)
    x = families.as_input(backbone.net, backbone.normalize(padded))
    features, (rows, columns) = families.dense(backbone.net, x)
    grid = principal_colours(features.patches[0].float().cpu()).reshape(rows, columns, 3)
    return Image.fromarray(grid).resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST)


def principal_colours(tokens: Tensor) -> UInt8Array:
    """Tokens (N, C) to colours (N, 3) uint8: three principal components, each spread from 0 to 255."""
    centred = (tokens - tokens.mean(0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:3]
    # The sign of a component is arbitrary: its largest coordinate is made positive.
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    scores = centred @ directions.T
    low, high = scores.quantile(0.02, 0), scores.quantile(0.98, 0)
    spread = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    found = torch.zeros(len(tokens), 3, dtype=torch.uint8)
    found[:, : spread.shape[1]] = (255 * spread).round().to(torch.uint8)
    return found.numpy()


def data_uri(image: Image.Image, *, photo: bool = False) -> str:
    """A picture as text for a page, at most 320 pixels wide or high."""
    small = image.convert("RGB")
    method = Image.Resampling.BILINEAR if photo else Image.Resampling.NEAREST
    small.thumbnail((_LONG_SIDE, _LONG_SIDE), method)
    buffer, kind = io.BytesIO(), "JPEG" if photo else "PNG"
    small.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
