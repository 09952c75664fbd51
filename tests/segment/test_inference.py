"""Inference at any size: what is padded is cut off again, and every image counts once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gkd_scale.errors import DataError
from gkd_scale.segment import inference
from gkd_scale.segment.inference import (
    Inference,
    Windows,
    confusion,
    logits,
    pad_to_stride,
    predict,
    prepare,
    starts,
)
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
    result = confusion(ColourReader(), dataset, (32, 48))
    assert result.miou() == 1.0
    assert int(result.counts.sum()) == sum(int((s.label != IGNORE).sum()) for s in dataset.samples)


@pytest.mark.parametrize("size", [(32, 48), (24, 24), (70, 50)])
def test_odd_sizes_are_scored_at_the_size_of_the_ground_truth(size: tuple[int, int]) -> None:
    dataset = Blocks(8, SIZES)
    result = confusion(ColourReader(), dataset, size, batch_size=3, workers=0)
    assert int(result.counts.sum()) == sum(int((s.label != IGNORE).sum()) for s in dataset.samples)
    assert result.miou() > 0.75


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
    counts: list[int] = []
    b = confusion(together, dataset, (32, 48), batch_size=4, advance=counts.append)
    assert torch.equal(a.counts, b.counts)
    assert counts == [2, 1, 2, 1] and [shape[0] for shape in together.seen] == counts


@settings(deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 33))
def test_padding_is_to_the_next_multiple_and_only_at_the_right_and_the_bottom(
    height: int, width: int, stride: int
) -> None:
    pixels = torch.arange(height * width * 3, dtype=torch.int64).reshape(1, 3, height, width)
    canvas = pad_to_stride(pixels, stride, (-1, -2, -3))
    assert all(
        p % stride == 0 and 0 <= p - s < stride
        for p, s in zip(canvas.shape[2:], (height, width), strict=True)
    )
    assert torch.equal(canvas[..., :height, :width], pixels)
    assert int((canvas < 0).sum()) == canvas.numel() - pixels.numel()


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60))
def test_working_size_covers_the_training_size_and_keeps_the_aspect(height: int, width: int) -> None:
    result = prepare(np.zeros((height, width, 3), np.uint8), (16, 24)).shape[1:]
    assert result[0] >= 16 and result[1] >= 24 and (result[0] == 16 or result[1] == 24)
    assert abs(result[0] / height - result[1] / width) <= 0.5 / min(height, width) + 1e-9


@pytest.mark.parametrize("head", ["linear", "fpn"])
def test_a_real_segmenter_equals_its_own_logits(head: str) -> None:
    segmenter = tiny_segmenter(head).eval()
    pixels = torch.randint(
        0, 256, (2, 3, 36, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    (first, second) = predict(segmenter, [pixels], [(36, 52), (72, 100)])
    canvas = F.pad(pixels, (0, 4, 0, 4)).clone()
    for channel, value in enumerate(segmenter.fill):
        canvas[:, channel, 36:] = value
        canvas[:, channel, :, 52:] = value
    with torch.no_grad():
        logits = segmenter.logits(canvas)[..., :36, :52]
    assert torch.equal(first, logits[0].argmax(0))
    assert torch.equal(second, F.interpolate(logits[1:], (72, 100), mode="bilinear")[0].argmax(0))


def noise(height: int, width: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


class Means:
    """A model whose logits say the mean of what it was shown, everywhere: no pixel is its own."""

    stride = 4
    fill = (0, 0, 0)

    def __init__(self) -> None:
        self.seen: list[int] = []

    def logits(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        return pixels.float().mean((2, 3), keepdim=True).expand(-1, -1, *pixels.shape[2:])


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_windows_cover_every_pixel_and_the_last_ends_at_the_border(
    length: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    begins = starts(length, window, stride)
    assert begins == sorted(set(begins)) and begins[0] == 0
    assert all(after - before <= stride for before, after in itertools.pairwise(begins))
    assert begins[-1] == max(0, length - window)
    assert len(begins) == max(0, -(-(length - window) // stride)) + 1


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=50)
@given(sizes, sizes, st.data())
def test_windows_of_any_size_and_stride_equal_the_whole_where_pixels_are_judged_alone(
    image: tuple[int, int], window: tuple[int, int], data: st.DataObject
) -> None:
    stride = tuple(data.draw(st.integers(max(1, side // 4), side)) for side in window)
    pixels, model = noise(*image, batch=2), ColourReader()
    result = logits(model, pixels, Windows(window, (stride[0], stride[1])), data.draw(st.integers(1, 9)))
    torch.testing.assert_close(result, logits(model, pixels))


@pytest.mark.parametrize("head", ["linear", "fpn"])
@pytest.mark.parametrize("window", [(36, 52), (64, 64), (512, 512)])
def test_one_window_equals_the_whole_image(head: str, window: tuple[int, int]) -> None:
    segmenter, pixels = tiny_segmenter(head).eval(), noise(36, 52, batch=2)
    with torch.no_grad():
        assert torch.equal(logits(segmenter, pixels, Windows(window, (8, 8))), logits(segmenter, pixels))


def test_overlapping_windows_are_averaged_with_equal_weight() -> None:
    pixels = noise(10, 20)
    result = logits(Means(), pixels, Windows((8, 8), (8, 8)))
    expected, visits = torch.zeros(3, 10, 20), torch.zeros(10, 20)
    for top in (0, 2):
        for left in (0, 8, 12):
            window = (..., slice(top, top + 8), slice(left, left + 8))
            expected[window] += pixels[0][window].float().mean((1, 2), keepdim=True)
            visits[window] += 1
    torch.testing.assert_close(result[0], expected / visits)


@pytest.mark.parametrize(("batch_size", "forwards"), [(1, [2] * 6), (4, [4] * 3), (100, [12])])
def test_windows_go_through_the_model_in_batches(batch_size: int, forwards: list[int]) -> None:
    pixels, model = noise(10, 20, batch=2), Means()
    windows = Windows((8, 8), (8, 8))
    result = logits(model, pixels, windows, batch_size)
    assert model.seen == forwards
    one_by_one = [logits(model, each[None], windows, 1) for each in pixels]
    torch.testing.assert_close(result, torch.cat(one_by_one))


def test_a_batch_of_images_has_no_more_windows_than_the_batch_size() -> None:
    dataset, model = Blocks(5, [(32, 48)]), ColourReader()
    counts: list[int] = []
    how = Inference(Windows((32, 32), (16, 16)))
    result = confusion(model, dataset, (32, 48), how=how, batch_size=5, advance=counts.append)
    assert counts == [2, 2, 1] and [shape[0] for shape in model.seen] == [4, 4, 2]
    assert result.miou() == 1.0


def test_test_time_augmentation_averages_scales_and_mirror_images() -> None:
    segmenter = tiny_segmenter("linear").eval()
    with torch.no_grad():
        for parameter in segmenter.head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    views = [noise(32, 48), noise(48, 72)]
    (result,) = predict(segmenter, views, [(40, 60)], Inference(scales=(1.0, 1.5), flip=True))
    total = torch.zeros(1, 4, 40, 60)
    with torch.no_grad():
        for view in views:
            for mirror in (False, True):
                look = segmenter.logits(view.flip(3) if mirror else view)
                total += F.interpolate(look.flip(3) if mirror else look, (40, 60), mode="bilinear")
    assert torch.equal(result, total.argmax(1)[0])
    assert not torch.equal(result, predict(segmenter, views[:1], [(40, 60)])[0])


def test_scales_are_of_the_size_that_covers_the_training_size() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    result = [tuple(prepare(image, (30, 30), scale).shape[1:]) for scale in (0.5, 1, 1.5)]
    assert result == [(15, 20), (30, 40), (45, 60)]
    dataset = Blocks(4, SIZES)
    other = confusion(ColourReader(), dataset, (32, 48), how=Inference(scales=(0.75, 1.0, 2.0), flip=True))
    assert int(other.counts.sum()) == sum(int((s.label != IGNORE).sum()) for s in dataset.samples)
    assert other.miou() > 0.75


# ------------------------------------------------------------------------------ extreme shapes

SLIDE = Inference(Windows((48, 64), (32, 43)))


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (10, 5000)])
def test_a_very_long_image_is_refused_whole_and_seen_by_windows(shape: tuple[int, int]) -> None:
    dataset = Blocks(1, [shape], void=False)
    with pytest.raises(DataError, match=f"the image 000 of blocks is {shape[0]}x{shape[1]}") as error:
        confusion(ColourReader(), dataset, (48, 64))
    assert "--inference slide" in error.value.hint
    small = Inference(Windows((16, 16), (16, 16)))
    assert int(confusion(ColourReader(), dataset, (8, 8), how=small).counts.sum()) == shape[0] * shape[1]


def test_what_windows_may_see_is_bounded_too() -> None:
    dataset = Blocks(1, [(1, 30_000)], void=False)
    with pytest.raises(DataError, match="it would become 512x15360000") as error:
        confusion(ColourReader(), dataset, (512, 512), how=SLIDE)
    assert "slide" not in error.value.hint


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (48, 1000), (700, 50)])
def test_long_images_within_the_bound_are_seen_whole(shape: tuple[int, int]) -> None:
    result = confusion(ColourReader(), Blocks(1, [shape], void=False), (48, 64))
    assert int(result.counts.sum()) == shape[0] * shape[1]


def test_choosing_class_by_class_equals_choosing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    views = [torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)]
    once = predict(ColourReader(), views, [(40, 50), (33, 61)], Inference(flip=True))
    monkeypatch.setattr(inference, "_MOST_LOGITS", 0)
    by_class = predict(ColourReader(), views, [(40, 50), (33, 61)], Inference(flip=True))
    assert all(torch.equal(one, other) for one, other in zip(once, by_class, strict=True))
