"""Each loss against its formula, in NumPy where that is another way to say it."""

from __future__ import annotations

from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from torch import Tensor

from gkd_scale.distill.losses import DISTANCES
from gkd_scale.distill.losses.contrast import TEMPERATURE, contrast
from gkd_scale.distill.losses.cosine import ALPHA, cosine
from gkd_scale.distill.losses.relations import relations


def pair(width: int = 8) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, 8, generator=draw), 2 * torch.randn(3, 5, width, generator=draw)


def unit(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    wide = x.double().numpy()
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_zero_for_equal_tokens_only(name: str) -> None:
    student, teacher = pair()
    assert float(resolve_name(DISTANCES[name])(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(resolve_name(DISTANCES[name])(student, teacher)) > 0.1


def test_cosine_is_half_direction_and_half_smooth_l1() -> None:
    student, teacher = pair()
    direction = (1 - (unit(student) * unit(teacher)).sum(-1)).mean()
    gap = np.abs((student - teacher).double().numpy())
    smooth = np.where(gap < 1, 0.5 * gap**2, gap - 0.5).mean()
    expected = ALPHA * direction + (1 - ALPHA) * smooth
    assert float(cosine(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_relations_compare_gram_matrices_of_any_widths() -> None:
    student, teacher = pair(width=6)
    gaps = [s @ s.T - t @ t.T for s, t in zip(unit(student), unit(teacher), strict=True)]
    assert float(relations(student, teacher)) == pytest.approx(np.square(gaps).mean(), rel=1e-5)


def test_relations_do_not_see_a_rotation() -> None:
    student, _ = pair()
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    assert float(relations(student @ rotation, student)) == pytest.approx(0, abs=1e-6)


def test_contrast_is_cross_entropy_over_the_patches_of_an_image() -> None:
    student, teacher = pair()
    terms = []
    for s, t in zip(unit(student), unit(teacher), strict=True):
        logits = s @ t.T / TEMPERATURE
        logits -= logits.max(1, keepdims=True)
        terms += list(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert float(contrast(student, teacher)) == pytest.approx(np.mean(terms), rel=1e-4)


def test_contrast_of_a_batch_is_the_mean_of_its_images() -> None:
    student, teacher = pair()
    alone = [float(contrast(s[None], t[None])) for s, t in zip(student, teacher, strict=True)]
    assert float(contrast(student, teacher)) == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("loss", [cosine, relations, contrast])
def test_half_precision_is_computed_in_float32(loss: object) -> None:
    student, teacher = pair()
    assert loss(student.bfloat16(), teacher).dtype == torch.float32  # type: ignore[operator]
