"""Inference at any size: what is padded is cut off again, and every image counts once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gkd_scale.segment.inference import confusion, pad_to_stride, predict, prepare
from gkd_scale.types import IGNORE

from .support import COLOURS, Blocks, tiny_segmenter

SIZES = ((32, 48), (40, 60), (33, 47), (20, 90))


class ColourReader:
    """A model that knows the colours: its mistakes are those of resizing alone."""

    stride = 16
    fill = (255, 255, 255)

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def logits(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[-2] % self.stride == 0 and pixels.shape[-1] % self.stride == 0
        self.seen.append(tuple(pixels.shape))
        palette = torch.from_numpy(COLOURS).float()[None, :, :, None, None]
        return -(pixels.float()[:, None] - palette).abs().sum(2)


def test_a_model_that_knows_the_colours_is_scored_as_perfect_at_native_size() -> None:
    dataset = Blocks(6, [(32, 48)])
    found = confusion(ColourReader(), dataset, (32, 48))
    assert found.miou() == 1.0
    assert int(found.counts.sum()) == sum(int((s.label != IGNORE).sum()) for s in dataset.samples)


@pytest.mark.parametrize("size", [(32, 48), (24, 24), (70, 50)])
def test_odd_sizes_are_scored_at_the_size_of_the_ground_truth(size: tuple[int, int]) -> None:
    dataset = Blocks(8, SIZES)
    found = confusion(ColourReader(), dataset, size, batch_size=3, workers=0)
    assert int(found.counts.sum()) == sum(int((s.label != IGNORE).sum()) for s in dataset.samples)
    assert found.miou() > 0.75


def test_splitting_the_images_over_ranks_counts_each_once() -> None:
    dataset, model = Blocks(7, SIZES), ColourReader()
    whole = confusion(model, dataset, (32, 48))
    for world in (2, 3, 8):
        parts = [confusion(model, dataset, (32, 48), indices=range(r, 7, world)) for r in range(world)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        assert torch.equal(total.counts, whole.counts)


def test_batches_hold_one_size_and_do_not_change_the_result() -> None:
    dataset = Blocks(6, [(32, 48), (32, 48), (40, 48)])
    one_by_one, together = ColourReader(), ColourReader()
    a = confusion(one_by_one, dataset, (32, 48), batch_size=1)
    done: list[int] = []
    b = confusion(together, dataset, (32, 48), batch_size=4, advance=done.append)
    assert torch.equal(a.counts, b.counts)
    assert done == [2, 1, 2, 1] and [shape[0] for shape in together.seen] == done


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 33))
def test_padding_is_to_the_next_multiple_and_only_at_the_right_and_the_bottom(
    height: int, width: int, stride: int
) -> None:
    pixels = torch.arange(height * width * 3, dtype=torch.int64).reshape(1, 3, height, width)
    padded = pad_to_stride(pixels, stride, (-1, -2, -3))
    assert all(
        p % stride == 0 and 0 <= p - s < stride
        for p, s in zip(padded.shape[2:], (height, width), strict=True)
    )
    assert torch.equal(padded[..., :height, :width], pixels)
    assert int((padded < 0).sum()) == padded.numel() - pixels.numel()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_working_size_covers_the_training_size_and_keeps_the_aspect(height: int, width: int) -> None:
    found = prepare(np.zeros((height, width, 3), np.uint8), (16, 24)).shape[1:]
    assert found[0] >= 16 and found[1] >= 24 and (found[0] == 16 or found[1] == 24)
    assert abs(found[0] / height - found[1] / width) <= 0.5 / min(height, width) + 1e-9


@pytest.mark.parametrize("head", ["linear", "fpn"])
def test_a_real_segmenter_equals_its_own_logits(head: str) -> None:
    segmenter = tiny_segmenter(head).eval()
    pixels = torch.randint(
        0, 256, (2, 3, 36, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    (first, second) = predict(segmenter, pixels, [(36, 52), (72, 100)])
    padded = F.pad(pixels, (0, 4, 0, 4)).clone()
    for channel, value in enumerate(segmenter.fill):
        padded[:, channel, 36:] = value
        padded[:, channel, :, 52:] = value
    with torch.no_grad():
        logits = segmenter.logits(padded)[..., :36, :52]
    assert torch.equal(first, logits[0].argmax(0))
    assert torch.equal(second, F.interpolate(logits[1:], (72, 100), mode="bilinear")[0].argmax(0))
