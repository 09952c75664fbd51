"""Conditioned tokens: their moments, what undoes them, and what a run keeps of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gkd_scale.errors import ModelError
from gkd_scale.models import conditioning
from gkd_scale.models.conditioning import AFFINE, Conditioning, affine, fit, hadamard
from gkd_scale.types import Features

WIDTH = 12


def tokens(seed: int = 0, count: int = 4000, width: int = WIDTH) -> Tensor:
    """As a foundation model's: a large common mean, one loud direction, correlated channels."""
    draw = torch.Generator().manual_seed(seed)
    loud = torch.randn(count, 1, generator=draw) * 20 * F.normalize(torch.randn(1, width, generator=draw))
    noise = torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw)
    return loud + noise + 30 * torch.randn(width, generator=draw)


def features(seed: int = 0) -> Iterator[Features]:
    for part in range(2):
        patches = tokens(seed + part).unflatten(0, (40, 100))
        yield Features(tokens(seed + part + 7, 40), patches)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.double()
    return wide.mean(0), torch.cov(wide.T, correction=0)


@pytest.mark.parametrize("norm", AFFINE)
def test_conditioned_tokens_have_mean_zero_and_mean_variance_one(norm: str) -> None:
    x = tokens()
    y = affine(norm, *moments(x))(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    assert float(y.var(0, correction=0).mean()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("norm", ["standard", "phi-s"])
def test_every_channel_has_variance_one(norm: str) -> None:
    x = tokens()
    y = affine(norm, *moments(x))(x)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(WIDTH), atol=1e-3, rtol=0)


def test_phi_s_is_one_scale_after_a_rotation() -> None:
    matrix = affine("phi-s", *moments(tokens())).matrix.double()
    scale = float((matrix @ matrix.T).diagonal().mean())
    torch.testing.assert_close(
        matrix @ matrix.T, scale * torch.eye(WIDTH, dtype=torch.double), atol=1e-5, rtol=0
    )


def test_whitening_raises_eigenvalues_to_one_minus_the_power() -> None:
    x = tokens()
    mean, covariance = moments(x)
    values = torch.linalg.eigvalsh(covariance)
    shrunk = values + conditioning.SHRINK * values.max()
    for power in (0.0, 0.5, 1.0):
        got = torch.linalg.eigvalsh(moments(affine("whiten", mean, covariance, power)(x))[1])
        expected = values * shrunk**-power
        torch.testing.assert_close(got, expected / expected.mean(), atol=1e-3, rtol=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(AFFINE), st.integers(0, 10_000), st.floats(0, 1))
def test_undo_gives_the_tokens_back(norm: str, seed: int, power: float) -> None:
    x = tokens(seed, 200)
    transform = affine(norm, *moments(x), power)
    torch.testing.assert_close(transform.undo(transform(x)), x, atol=1e-2, rtol=1e-3)


def test_a_constant_channel_does_no_harm() -> None:
    x = tokens()
    x[:, 3] = 5.0
    for norm in AFFINE:
        assert affine(norm, *moments(x))(x).isfinite().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.sampled_from([1, 4, 12, 20, 24, 44]))
def test_hadamard_matrices_are_orthogonal_with_equal_entries(doublings: int, base: int) -> None:
    order = base * 2**doublings
    matrix = hadamard(order).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(order, dtype=torch.double), atol=1e-5, rtol=0)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, order**-0.5), atol=1e-6, rtol=0)


def test_an_unknown_order_says_what_to_take() -> None:
    with pytest.raises(ModelError, match="order 100 is known") as error:
        hadamard(100)
    assert "whiten" in str(error.value.hint)


def test_none_and_layer_need_no_moments() -> None:
    def never() -> Iterator[Features]:
        raise AssertionError("read")
        yield

    raw = next(features())
    same = fit(never(), "none")(raw)
    assert torch.equal(same.patches, raw.patches)
    layer = fit(never(), "layer")(raw)
    torch.testing.assert_close(layer.patches, F.layer_norm(raw.patches, (WIDTH,)))
    torch.testing.assert_close(layer.cls, F.layer_norm(raw.cls, (WIDTH,)))


def test_cls_and_patches_have_moments_of_their_own() -> None:
    space = fit(features(), "standard")
    every = list(features())
    for part in ("cls", "patches"):
        y = torch.cat([getattr(space(each), part).flatten(0, -2) for each in every])
        torch.testing.assert_close(y.mean(0), torch.zeros(WIDTH), atol=1e-4, rtol=0)


def test_half_precision_features_are_conditioned_in_float32() -> None:
    space = fit(features(), "whiten")
    raw = next(features())
    half = Features(raw.cls.half(), raw.patches.half())
    expected = space(Features(*(each.float() for each in half)))
    for got, right in zip(space(half), expected, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, right)


def test_nothing_of_it_is_trained_or_in_the_state_dict() -> None:
    space = fit(features(), "whiten")
    assert not list(space.parameters()) and not space.state_dict()


@pytest.mark.parametrize("norm", ["none", "layer", *AFFINE])
def test_it_comes_back_from_its_folder(tmp_path: Path, norm: str) -> None:
    space = fit(features(), norm)
    space.save(tmp_path)
    again = conditioning.load(tmp_path)
    assert again is not None and again.norm == norm and again.digest() == space.digest()


def test_a_run_keeps_what_it_began_with_and_no_other(tmp_path: Path) -> None:
    first = conditioning.load_or_make(tmp_path, "cache a", lambda: fit(features(), "standard"))
    first.save(tmp_path, "cache a")
    second = conditioning.load_or_make(tmp_path, "cache a", lambda: fit(features(99), "standard"))
    assert second.digest() == first.digest()
    third = conditioning.load_or_make(tmp_path, "cache b", lambda: fit(features(99), "standard"))
    assert third.digest() != first.digest()
    assert conditioning.load(tmp_path / "nowhere") is None


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / conditioning.FILE).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=conditioning.FILE):
        conditioning.load(tmp_path)
    Conditioning("none").save(tmp_path)
    assert isinstance(conditioning.load(tmp_path), Conditioning)
