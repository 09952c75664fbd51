"""Augmentation keeps image and label together, and depends on nothing but its names."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gkd_scale.randomness import generator
from gkd_scale.segment.augment import (
    Box,
    TrainStream,
    augment,
    crop_label,
    crop_pixels,
    draw_box,
    one_class_share,
    photometric,
)
from gkd_scale.segment.config import AugmentConfig
from gkd_scale.types import IGNORE, SegSample

from .support import COLOURS, Blocks, blocks, picture

WHITE = (255, 255, 255)
GEOMETRY = AugmentConfig(photometric=0.0)
SIZES = st.tuples(st.integers(8, 70), st.integers(8, 70))


def sample_of(size: tuple[int, int], seed: int) -> SegSample:
    label = blocks(size, seed, void=True)
    return SegSample("x", picture(label), label)


def disagreement(pixels: torch.Tensor, label: torch.Tensor) -> float:
    """Share of pixels whose nearest class colour (white: ignored) is not their label."""
    palette = torch.from_numpy(np.vstack([COLOURS, [WHITE]])).float()
    distance = (pixels.float()[None] - palette[:, :, None, None]).abs().sum(1)
    nearest = distance.argmin(0)
    nearest[nearest == len(COLOURS)] = IGNORE
    return float((nearest != label).float().mean())


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.floats(0.5, 2.0), st.integers(0, 99))
@example((8, 8), (45, 8), 2.0, 48)
def test_a_label_coloured_image_stays_aligned(
    source: tuple[int, int], target: tuple[int, int], scale: float, seed: int
) -> None:
    config = AugmentConfig(scale=(scale, scale), photometric=0.0, cat_max_ratio=1.0)
    sample = sample_of(source, seed)
    pixels, label = augment(sample, target, config, generator("t", seed), WHITE)
    assert pixels.shape == (3, *target) and label.shape == target
    assert pixels.dtype == label.dtype == torch.uint8
    # Only pixels that mix colours at an edge may differ: as many beside it as a source pixel is wide there.
    ids = label.int()
    edges = (ids.diff(dim=0) != 0).sum() + (ids.diff(dim=1) != 0).sum()
    zoom = scale * max(there / here for there, here in zip(target, source, strict=True))
    limit = max(3, zoom) * int(edges) + 4
    assert disagreement(pixels, label) * label.numel() <= limit


def test_alignment_is_exact_where_nothing_is_resized() -> None:
    sample = sample_of((24, 36), 3)
    box = Box(-4, 5, 24, 36)
    pixels = crop_pixels(sample.image, box, (24, 36), WHITE)
    label = crop_label(sample.label, box, (24, 36))
    assert disagreement(pixels, label) == 0
    assert (label[:4] == IGNORE).all()
    np.testing.assert_array_equal(label[4:, :31], sample.label[:20, 5:])


def test_labels_are_never_blended() -> None:
    sample = sample_of((31, 45), 1)
    for seed in range(10):
        _, label = augment(sample, (16, 24), GEOMETRY, generator("b", seed))
        assert set(label.unique().tolist()) <= {0, 1, 2, 3, IGNORE}


def test_flip_flips_both() -> None:
    sample = sample_of((24, 24), 2)
    still = AugmentConfig(scale=(1, 1), flip=0.0, photometric=0.0, cat_max_ratio=1.0)
    always = AugmentConfig(scale=(1, 1), flip=1.0, photometric=0.0, cat_max_ratio=1.0)
    pixels, label = augment(sample, (24, 24), still, generator("f"))
    mirror, mirror_label = augment(sample, (24, 24), always, generator("f"))
    assert torch.equal(mirror, pixels.flip(-1)) and torch.equal(mirror_label, label.flip(-1))
    assert not torch.equal(mirror_label, label)


@settings(deadline=None)
@given(SIZES, SIZES, st.floats(0.5, 2.0), st.integers(0, 999))
def test_box_lies_inside_the_image_or_around_it(
    source: tuple[int, int], target: tuple[int, int], scale: float, seed: int
) -> None:
    box = draw_box(source, target, scale, generator("box", seed))
    for start, length, available in zip((box.top, box.left), (box.height, box.width), source, strict=True):
        inside = start >= 0 and start + length <= available
        around = start <= 0 and start + length >= available
        assert inside or around


def test_crops_of_nearly_one_class_are_drawn_again() -> None:
    label = np.zeros((64, 64), np.uint8)
    label[:, 48:] = 1
    sample = SegSample("x", picture(label), label)
    shares = {
        ratio: np.mean(
            [
                one_class_share(
                    augment(
                        sample,
                        (32, 32),
                        AugmentConfig(scale=(1.5, 2.0), photometric=0.0, cat_max_ratio=ratio),
                        generator("cat", seed),
                    )[1]
                )
                for seed in range(30)
            ]
        )
        for ratio in (0.75, 1.0)
    }
    assert shares[0.75] < 0.8 < shares[1.0]


def test_a_crop_shows_the_class_that_is_wanted() -> None:
    label = np.zeros((64, 64), np.uint8)
    label[:16, :16] = 1
    sample = SegSample("x", picture(label), label)
    config = AugmentConfig(scale=(2.0, 2.0), photometric=0.0, cat_max_ratio=1.0)

    def share(focus: tuple[int, float] | None) -> float:
        labels = [
            augment(sample, (32, 32), config, generator("w", seed), focus=focus)[1] for seed in range(60)
        ]
        return float(np.mean([(each == 1).any() for each in labels]))

    assert share((1, 0.001)) > 0.8 > 0.4 > share(None)
    assert share((3, 0.5)) < 0.5  # a class that is not there: the last of ten crops is taken


def test_photometric_changes_pixels_and_zero_strength_does_not() -> None:
    pixels = torch.from_numpy(picture(blocks((16, 16), 0))).permute(2, 0, 1).contiguous()
    results = [photometric(pixels, 1.0, generator("p", seed)) for seed in range(8)]
    assert any(not torch.equal(each, pixels) for each in results)
    assert all(each.dtype == torch.uint8 and each.shape == pixels.shape for each in results)
    for seed in range(8):
        still = photometric(pixels, 0.0, generator("p", seed))
        assert int((still.int() - pixels.int()).abs().max()) <= 2  # HSV and back, rounded


def test_augmentation_is_a_function_of_its_generator_name() -> None:
    sample = sample_of((40, 60), 4)
    config = AugmentConfig()
    torch.manual_seed(1)
    first = augment(sample, (32, 32), config, generator("a", 0, 1))
    torch.manual_seed(2)
    again = augment(sample, (32, 32), config, generator("a", 0, 1))
    other = augment(sample, (32, 32), config, generator("a", 0, 2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.fixture
def stream() -> TrainStream:
    return TrainStream(Blocks(5), (16, 24), AugmentConfig(), seed=3, fill=WHITE, workers=2)


def test_world_size_threads_and_resume_do_not_change_what_is_trained_on(stream: TrainStream) -> None:
    one = list(stream.batches(micro=4, accumulation=1, rank=0, world=1)(0, 4))
    inline = TrainStream(stream.dataset, stream.size, stream.config, stream.seed, stream.fill, workers=0)
    two = [list(inline.batches(micro=2, accumulation=1, rank=rank, world=2)(0, 4)) for rank in (0, 1)]
    rest = list(stream.batches(micro=4, accumulation=1, rank=0, world=1)(2, 4))
    assert len(one) == 4
    for step, whole in enumerate(one):
        for kind in (0, 1):
            halves = torch.cat([two[0][step][kind], two[1][step][kind]])
            assert torch.equal(whole[kind], halves)
    for whole, again in zip(one[2:], rest, strict=True):
        assert torch.equal(whole.pixels, again.pixels) and torch.equal(whole.labels, again.labels)
    assert all(not torch.equal(a.pixels, b.pixels) for a, b in pairwise(one))
