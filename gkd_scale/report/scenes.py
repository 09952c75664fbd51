"""Images as the models see them: prediction, errors, tokens and attention of a domain's best and worst."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale.errors import DataError
from gkd_scale.models import families
from gkd_scale.report.attention import AttentionMaps, attention_maps
from gkd_scale.report.components import Components
from gkd_scale.report.teacher import TaughtBy, whole
from gkd_scale.segment.finished import FinishedSegmenter
from gkd_scale.segment.inference import prepare
from gkd_scale.segment.metrics import Confusion
from gkd_scale.segment.pictures import palette_image
from gkd_scale.types import IGNORE, Grid, SegDataset, SegSample, UInt8Array

_LONG_SIDE = 320
_RANKS = ("worst", "best")
_ERROR, _RIGHT, _VOID = (220, 50, 47), (235, 235, 235), (150, 150, 150)


@dataclass(frozen=True)
class ReportModel:
    """A segmenter that is looked at, and the teacher of its backbone if there is one."""

    model: FinishedSegmenter
    link: TaughtBy | None = None


@dataclass(frozen=True)
class ModelView:
    """One image under one model: mIoU 0..100 of this image alone, and pictures as data URIs.

    ``teacher`` are the teacher's tokens and ``tokens`` the student's, in one basis; without a teacher
    ``teacher`` and ``attention`` are None and ``tokens`` have a basis of their own.
    """

    run: str
    miou: float
    prediction: str
    errors: str
    tokens: str
    teacher: str | None
    attention: AttentionMaps | None


@dataclass(frozen=True)
class DomainImage:
    """One image of a domain: ``rank`` says why it is shown, ``runs`` one :class:`ModelView` a model."""

    name: str
    rank: str
    image: str
    label: str
    runs: list[ModelView]


@dataclass(frozen=True)
class DomainLook:
    """What the models do on a domain: confusion by run over the images looked at, and chosen scenes."""

    images: int
    of: int
    confusion: dict[str, Confusion]
    scenes: list[DomainImage]


def look(
    subjects: Mapping[str, ReportModel],
    dataset: SegDataset,
    *,
    images: int,
    scenes: int,
    compare: bool = False,
    advance: Callable[[], object] = lambda: None,
) -> DomainLook:
    """Run every model on ``images`` of a dataset, evenly spaced (0: all), and picture the extremes.

    Images are ranked by their own mIoU, averaged over the models; with ``compare`` by how much the first of
    two models is above the second.
    """
    count = min(images or len(dataset), len(dataset))
    places = [place * len(dataset) // count for place in range(count)]
    total = {name: Confusion(len(dataset.classes)) for name in subjects}
    scores: list[float] = []
    for place in places:
        sample = dataset[place]
        confusions = {name: _predict(subject.model, sample)[1] for name, subject in subjects.items()}
        for name, confusion in confusions.items():
            total[name] += confusion
        mious = [confusion.miou() for confusion in confusions.values()]
        scores.append(mious[0] - mious[1] if compare else float(np.mean(mious)))
        advance()
    first, *others = subjects
    ranks = (f"{others[0]} ahead of {first}", f"{first} ahead of {others[0]}") if compare else _RANKS
    selection = [_scene(rank, dataset[places[at]], subjects) for rank, at in extremes(scores, scenes, ranks)]
    return DomainLook(count, len(dataset), total, selection)


def extremes(scores: Sequence[float], most: int, ranks: tuple[str, str] = _RANKS) -> list[tuple[str, int]]:
    """The places of the lowest and the highest scores, each once, with their ranks.

    Images without a score (no labelled pixel) come last, if there are not enough others.
    """
    order = [int(at) for at in np.argsort(scores, kind="stable")]
    ranking = [at for at in order if np.isfinite(scores[at])]
    low = ranking[:most]
    high = [at for at in ranking[::-1][:most] if at not in low]
    rest = [at for at in order if not np.isfinite(scores[at])][: max(0, 2 * most - len(ranking))]
    return [
        *((ranks[0], at) for at in low),
        *((ranks[1], at) for at in high),
        *(("no labelled pixel", at) for at in rest),
    ]


def _predict(model: FinishedSegmenter, sample: SegSample) -> tuple[UInt8Array, Confusion]:
    """The class ids of an image, and their confusion with its label."""
    try:
        prediction = model.predict(sample.image)
    except DataError as error:
        raise DataError(f"{sample.name}: {error.message}", error.hint) from None
    assert isinstance(prediction, np.ndarray)
    confusion = Confusion(len(model.classes))
    confusion.update(torch.from_numpy(prediction), torch.from_numpy(np.array(sample.label)))
    return prediction, confusion


def _scene(rank: str, sample: SegSample, subjects: Mapping[str, ReportModel]) -> DomainImage:
    palette = next(iter(subjects.values())).model.palette
    views = [_view(name, subject, sample) for name, subject in subjects.items()]
    image, label = Image.fromarray(sample.image), _mask(sample.label, palette)
    return DomainImage(sample.name, rank, data_uri(image, photo=True), data_uri(label), views)


def _view(name: str, subject: ReportModel, sample: SegSample) -> ModelView:
    prediction, confusion = _predict(subject.model, sample)
    size = (sample.image.shape[1], sample.image.shape[0])
    student, grid = student_tokens(subject.model, sample.image)
    theirs, maps, link = None, None, subject.link
    if link is None:
        mine = _picture(Components.of(student), student, grid, size)
    else:
        teacher, student = link.tokens(sample.image), link.on_grid(student, grid)
        grid, basis = link.teacher.grid, Components.of(teacher)
        mine = _picture(basis, link.estimate(student), grid, size)
        theirs = _picture(basis, teacher, grid, size)
        kind = "QSD attention" if link.attends else "similarity"
        weights = link.attention(student, teacher)
        maps = attention_maps(weights, grid, kind=kind, total=link.attends)
    mask, errors = _mask(prediction, subject.model.palette), _errors(prediction, sample.label)
    return ModelView(name, 100 * confusion.miou(), data_uri(mask), data_uri(errors), mine, theirs, maps)


def _mask(label: UInt8Array, palette: tuple[tuple[int, int, int], ...]) -> Image.Image:
    full = [*palette, *[_VOID] * (IGNORE + 1 - len(palette))]
    return palette_image(np.ascontiguousarray(label), full).convert("RGB")


def _errors(prediction: UInt8Array, label: UInt8Array) -> Image.Image:
    """Wrong pixels in red, right ones light, ignored ones grey."""
    picture = np.full((*label.shape, 3), _RIGHT, np.uint8)
    picture[prediction != label] = _ERROR
    picture[label == IGNORE] = _VOID
    return Image.fromarray(picture)


@torch.no_grad()
def student_tokens(model: FinishedSegmenter, image: UInt8Array) -> tuple[Tensor, Grid]:
    """The backbone's patch tokens (n, Cs) of a whole image (H, W, 3), and their grid; on the CPU, float32.

    The image has the size that it is predicted at, its sides rounded up to whole strides.
    """
    backbone, stride = model.module.backbone, model.module.stride
    height, width = prepare(image, model.image_size).shape[-2:]
    pixels = whole(image, (-(-height // stride) * stride, -(-width // stride) * stride))
    x = families.as_input(backbone.net, backbone.normalize(pixels[None].to(model.device)))
    features, grid = families.dense(backbone.net, x)
    return features.patches[0].float().cpu(), grid


def _picture(basis: Components, tokens: Tensor, grid: Grid, size: tuple[int, int]) -> str:
    """Tokens (N, C) on ``grid`` as a picture of ``size``, width and height."""
    colours = Image.fromarray(basis.colours(tokens).reshape(*grid, 3))
    return data_uri(colours.resize(size, Image.Resampling.NEAREST))


def data_uri(image: Image.Image, *, photo: bool = False) -> str:
    """A picture as text for a page, at most 320 pixels wide or high."""
    small = image.convert("RGB")
    method = Image.Resampling.BILINEAR if photo else Image.Resampling.NEAREST
    small.thumbnail((_LONG_SIDE, _LONG_SIDE), method)
    buffer, kind = io.BytesIO(), "JPEG" if photo else "PNG"
    small.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
