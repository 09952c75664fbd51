"""Every head of the registry: shapes, gradients, determinism, and what a bad name says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gkd_scale.errors import ConfigError
from gkd_scale.segment.heads.base import SegHead, cross_entropy
from gkd_scale.segment.heads.linear import LinearHead
from gkd_scale.segment.heads.registry import HEADS, build_head
from gkd_scale.types import IGNORE

from ..support import pyramid, state_of  # noqa: TID252

CHANNELS = (6, 8, 10, 12)
SMALL: dict[str, dict[str, Any]] = {
    "mask2former": {"size": "small", "width": 32, "queries": 8, "points": 256, "decoder_layers": 2}
}
RATE = {"mask2former": 2e-3}
every_head = pytest.mark.parametrize("name", sorted(HEADS))


def small(name: str, classes: int, seed: int = 0) -> SegHead:
    """The head at a size that a test can train."""
    return build_head(name, CHANNELS, classes, SMALL.get(name), seed=seed)


@every_head
@pytest.mark.parametrize("size", [(64, 64), (40, 72), (33, 47)])
def test_logits_have_the_size_that_was_asked_for(name: str, size: tuple[int, int]) -> None:
    head = small(name, 5)
    logits = head(pyramid(CHANNELS, size), size)
    assert logits.shape == (2, 5, *size) and logits.dtype == torch.float32


@every_head
def test_every_parameter_gets_a_gradient_and_the_loss_falls(name: str) -> None:
    head = small(name, 3)
    features = pyramid(CHANNELS, (32, 32))
    labels = torch.zeros(2, 32, 32, dtype=torch.uint8)
    labels[:, 16:] = 1
    labels[:, :, :8] = IGNORE
    optimizer = torch.optim.Adam(head.parameters(), RATE.get(name, 0.02))
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = head.losses(features, labels)["loss"]
        loss.backward()
        if not history:
            missing = [key for key, value in head.named_parameters() if value.grad is None]
            assert not missing
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


@every_head
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    torch.manual_seed(1)
    first = state_of(small(name, 3, seed=0))
    torch.manual_seed(2)
    again = state_of(small(name, 3, seed=0))
    other = state_of(small(name, 3, seed=1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_head
def test_building_a_head_leaves_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    small(name, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_linear_equals_one_convolution_of_the_concatenated_maps() -> None:
    head = LinearHead(CHANNELS, 3).eval()
    features = pyramid(CHANNELS, (64, 64))
    size = features[0].shape[-2:]
    levels = [F.interpolate(each, size, mode="bilinear") for each in features]
    weight = torch.cat([each.weight for each in head.classifiers], dim=1)
    # In eval mode a fresh BatchNorm divides by sqrt(1 + eps) alone.
    expected = F.conv2d(torch.cat(levels, 1) / (1 + 1e-5) ** 0.5, weight, head.classifiers[0].bias)
    torch.testing.assert_close(head(features, (16, 16)), expected, atol=1e-5, rtol=1e-5)


def test_unknown_names_and_arguments_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        build_head("liner", CHANNELS, 3)
    with pytest.raises(ConfigError, match="did you mean 'width'"):
        build_head("fpn", CHANNELS, 3, {"widht": 8})
    with pytest.raises(ConfigError, match="it takes none"):
        build_head("linear", CHANNELS, 3, {"depth": 8})


def test_head_arguments_are_used() -> None:
    assert build_head("fpn", CHANNELS, 3, {"width": 16}).get_parameter("classifier.weight").shape[1] == 16


def test_cross_entropy_of_ignored_pixels_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 4, 4), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_cross_entropy_of_parts_averages_to_that_of_the_whole() -> None:
    logits = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (4, 5, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels[0] = IGNORE
    labels[1, :3] = IGNORE
    whole = cross_entropy(logits, labels)
    halves = (cross_entropy(logits[:2], labels[:2]) + cross_entropy(logits[2:], labels[2:])) / 2
    torch.testing.assert_close(whole, halves)
    valid = labels != IGNORE
    by_hand = -logits.log_softmax(1).permute(0, 2, 3, 1)[valid].gather(1, labels[valid].long()[:, None]).sum()
    torch.testing.assert_close(whole, by_hand / labels.numel())


def test_cross_entropy_of_half_precision_is_computed_in_float32() -> None:
    logits = torch.randn(1, 3, 8, 8).bfloat16()
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, cross_entropy(logits.float(), labels))
