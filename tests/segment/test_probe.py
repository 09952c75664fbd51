from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gkd_scale.segment import probe as probes
from gkd_scale.types import IGNORE, Features
from tests.segment.support import Blocks

SIZE, GRID = (32, 48), (16, 24)


def pixels_as_tokens(pixels: Tensor) -> Features:
    """An encoder that gives each cell's mean colour: these classes are colours, so it can be read off."""
    patches = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, GRID).flatten(2).transpose(1, 2)
    return Features(patches.mean(1), patches)


def nothing(pixels: Tensor) -> Features:
    patches = torch.zeros(len(pixels), GRID[0] * GRID[1], 3)
    return Features(patches.mean(1), patches)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_good_tokens_score_high_and_empty_ones_low(kind: str) -> None:
    fit, val = (probes.load(Blocks(n), SIZE, most=100) for n in (20, 7))
    good = probes.probe(pixels_as_tokens, GRID, fit, val, kind)
    assert good.counts.dtype == torch.int64
    assert good.miou() > 0.8
    assert probes.probe(nothing, GRID, fit, val, kind).miou() < 0.3
    again = probes.probe(pixels_as_tokens, GRID, fit, val, kind)
    assert torch.equal(again.counts, good.counts)


def test_every_labelled_pixel_is_counted_once_at_its_own_size() -> None:
    fit = probes.load(Blocks(4), SIZE, most=100)
    dataset = Blocks(5, sizes=((32, 48), (50, 70)))
    val = probes.load(dataset, SIZE, most=100)
    total = int(probes.probe(pixels_as_tokens, GRID, fit, val).counts.sum())
    assert total == sum(int((sample.label != IGNORE).sum()) for sample in dataset.samples)


def test_load_takes_at_most_so_many_spread_evenly() -> None:
    dataset = Blocks(10)
    some = probes.load(dataset, SIZE, most=5)
    assert some.pixels.shape == (5, 3, *SIZE)
    for index, label in enumerate(some.labels):
        assert torch.equal(label, torch.from_numpy(dataset[2 * index].label))


def test_class_shares_leave_ignored_pixels_out() -> None:
    label = torch.tensor([[0, 0, 1, IGNORE], [0, 1, 1, IGNORE]])
    shares = probes.class_shares(label, 2, (1, 2))
    assert shares.tolist() == [[0.75, 0.25], [0.0, 0.5]]
