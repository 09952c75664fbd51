"""Orders of the training stream: pure, exact in their proportions, each image as often as it should be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.segment.augment import TrainStream
from gkd_scale.segment.config import AugmentConfig
from gkd_scale.segment.sampling import (
    BLOCK,
    RARE_SHARE,
    Mixture,
    Order,
    RareClass,
    Uniform,
    epoch_order,
    quotas,
    rare_class_probabilities,
)

from .support import Blocks

PIXELS = np.array([[900, 90, 0, 0], [500, 0, 500, 0], [1000, 0, 0, 0], [996, 3, 0, 1]])
"""Four images, four classes; the last class has too few pixels for the threshold."""


@settings(deadline=None)
@given(st.integers(0, 5), st.integers(1, 40), st.integers(0, 3))
def test_each_epoch_has_every_image_once(seed: int, images: int, epoch: int) -> None:
    order = Uniform(seed, images)
    picks = [order(epoch * images + offset) for offset in range(images)]
    assert {each.epoch for each in picks} == {epoch}
    assert sorted(each.image for each in picks) == list(range(images))


def test_epochs_seeds_and_sources_differ_in_order() -> None:
    orders = [
        tuple(epoch_order(seed, epoch, 30, *key))
        for seed in (0, 1)
        for epoch in (0, 1)
        for key in ((), ("source", 0), ("source", 1))
    ]
    assert len(set(orders)) == 12


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_quotas_are_whole_and_nearest_to_the_weights(weights: list[float]) -> None:
    result = quotas(weights)
    assert sum(result) == BLOCK and min(result) >= 1
    exact = np.array(weights) / sum(weights) * BLOCK
    if exact.min() >= 1:
        assert np.abs(result - exact).max() < 1 + 1e-6


def mixture(seed: int = 0) -> Mixture:
    sizes, weights = (3, 50, 7), (0.5, 0.25, 0.25)
    return Mixture(
        seed, sizes, weights, [Uniform(seed, size, "source", index) for index, size in enumerate(sizes)]
    )


def test_a_mixture_has_its_proportions_and_uses_each_source_up_evenly() -> None:
    order = mixture()
    counts = Counter(order(position).image for position in range(2 * BLOCK))
    sources = [range(3), range(3, 53), range(53, 60)]
    assert [sum(counts[image] for image in source) for source in sources] == [1000, 500, 500]
    for source in sources:
        often = [counts[image] for image in source]
        assert max(often) - min(often) <= 1
    picks = [order(position)[:2] for position in range(BLOCK)]
    assert len(set(picks)) == BLOCK  # so no augmentation comes twice


@pytest.mark.parametrize("order", [mixture(3), RareClass(3, PIXELS, 0.1)], ids=["mixture", "rare-class"])
def test_any_position_can_be_asked_first(order: Order) -> None:
    fresh = mixture(3) if isinstance(order, Mixture) else RareClass(3, PIXELS, 0.1)
    forwards = [order(position) for position in range(1500)]
    assert [fresh(position) for position in reversed(range(1500))] == forwards[::-1]


def test_rare_class_probabilities_are_daformers() -> None:
    share = PIXELS.sum(0) / PIXELS.sum()
    expected = np.exp((1 - share) / 0.5)
    np.testing.assert_allclose(rare_class_probabilities(PIXELS, 0.5), expected / expected.sum())
    without = rare_class_probabilities(np.array([[5, 0, 1]]), 0.01)
    assert without[1] == 0 and without[2] > without[0]
    assert np.isfinite(rare_class_probabilities(PIXELS, 1e-6)).all()


def test_rare_classes_come_as_often_as_they_should_in_images_that_show_them() -> None:
    order = RareClass(0, PIXELS, 0.5)
    picks = [order(position) for position in range(4000)]
    counts = Counter(pick.focus[0] for pick in picks if pick.focus)
    shares = np.array([counts[each] for each in range(4)]) / len(picks)
    np.testing.assert_allclose(shares, rare_class_probabilities(PIXELS, 0.5), atol=0.03)
    images = {each: {p.image for p in picks if p.focus and p.focus[0] == each} for each in range(4)}
    assert images == {0: {0, 1, 2, 3}, 1: {0, 3}, 2: {1}, 3: {3}}
    assert PIXELS[3, 3] / PIXELS[3].sum() < RARE_SHARE


def test_the_stream_of_a_mixture_resumes_exactly_on_any_number_of_ranks() -> None:
    def stream(workers: int) -> TrainStream:
        order = Mixture(1, (3, 2), (1, 3), [RareClass(1, PIXELS[:3], 0.1), Uniform(1, 2, "source", 1)])
        return TrainStream(Blocks(5), (16, 24), AugmentConfig(), 1, (0, 0, 0), workers, order)

    whole = list(stream(2).batches(micro=4, accumulation=1, rank=0, world=1)(0, 4))
    halves = [list(stream(0).batches(micro=2, accumulation=1, rank=rank, world=2)(2, 4)) for rank in (0, 1)]
    for step in (0, 1):
        assert torch.equal(whole[2 + step].pixels, torch.cat([half[step].pixels for half in halves]))
        assert torch.equal(whole[2 + step].labels, torch.cat([half[step].labels for half in halves]))
