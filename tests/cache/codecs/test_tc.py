"""tcB: what it keeps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.cache.codecs.base import Array, Codec
from gkd_scale.cache.codecs.registry import get_codec
from gkd_scale.cache.codecs.tc import _ERRORS

from .support import fit, through_files


@given(st.sampled_from([1, 1.5, 2.2, 3, 4, 5.75, 7]), st.floats(0.01, 3))
@settings(max_examples=30)
def test_transform_coding_errs_by_what_the_widths_promise(bits: float, noise: float) -> None:
    """At most 1.6 times the error of optimal quantisers of Gaussian components, with B bits a value."""
    codec, values = fit(24, bits, noise=noise, family="tc")
    members = codec.encode(values)
    assert members["patch.npy"].shape == (400, int(np.ceil(round(24 * bits) / 8)))
    sigma, widths = codec.state["sigma"], codec.state["bits"].astype(int)
    assert widths.sum() == round(24 * bits) and (np.diff(widths) <= 0).all()
    promise = (sigma**2 * np.array(_ERRORS)[widths]).sum() * len(values)
    error = float(((through_files(codec, values) - values) ** 2).sum())
    assert error <= 1.6 * promise + 1e-5 * (values**2).sum()


def test_transform_coding_beats_pca_at_equal_bytes_and_holds_tokens_of_large_norm() -> None:
    pca, values = fit(32, 8, noise=1.0)
    tc, _ = fit(32, 2, noise=1.0, family="tc")
    assert pca.encode(values)["patch.npy"].nbytes == tc.encode(values)["patch.npy"].nbytes

    def error(codec: Codec, tokens: Array) -> float:
        return float(((through_files(codec, tokens) - tokens) ** 2).sum() / tokens.var(0).sum())

    assert error(tc, values) < 0.5 * error(pca, values)
    far = values + 50 * (values[:1] - values.mean(0))
    relative = np.linalg.norm(through_files(tc, far) - far, axis=1) / np.linalg.norm(far, axis=1)
    assert relative.max() < 0.5


def test_a_token_far_from_those_of_the_fit_is_refused() -> None:
    """Its gain would be infinite in the 8 bits of a scale."""
    codec, values = fit(24, 2, noise=0.1, family="tc")
    far = values[:3].copy()
    far[1] += 60000 * codec.state["basis"][codec.state["bits"] > 0][-1]
    with pytest.raises(ValueError, match="too far from those that the codec was fitted to"):
        codec.encode(far)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_the_first_decodes_of_several_threads_are_those_of_one(frequent_switches: None) -> None:  # noqa: ARG001
    codec, values = fit(24, 2.2, noise=0.1, family="tc")
    members = codec.encode(values)
    alone = codec.decode(members)
    for _ in range(100):
        new, start = get_codec("tc2.2", codec.state), Barrier(4)

        def decode(fresh: Codec = new, together: Barrier = start) -> Array:
            together.wait()
            return fresh.decode(members)

        with ThreadPoolExecutor(4) as pool:
            for result in [pool.submit(decode) for _ in range(4)]:
                assert (result.result() == alone).all()
