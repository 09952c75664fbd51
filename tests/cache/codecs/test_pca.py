"""pcaK: what it keeps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from .support import fit, through_files


def test_pca_holds_what_lies_in_its_components() -> None:
    codec, values = fit(24, 4)
    assert codec.name == "pca4" and codec.state["basis"].shape == (4, 24)
    np.testing.assert_allclose(codec.state["basis"] @ codec.state["basis"].T, np.eye(4), atol=1e-5)
    members = codec.encode(values)
    assert members["patch.npy"].shape == (400, 4) and members["patch.npy"].dtype == np.int8
    deviations = values - values.mean(0)
    assert ((through_files(codec, values) - values) ** 2).sum() < 2e-4 * (deviations**2).sum()


@given(st.integers(1, 24))
@settings(max_examples=24)
def test_pca_errs_by_the_components_it_leaves_out(components: int) -> None:
    codec, values = fit(24, components, noise=0.5)
    deviations = (values - values.mean(0)).astype(np.float64)
    variances = np.linalg.eigvalsh(deviations.T @ deviations)[::-1]
    error = float(((through_files(codec, values) - values) ** 2).sum())
    assert error <= 1.02 * variances[components:].sum() + 1e-3 * variances.sum()
    assert error >= 0.98 * variances[components:].sum() - 1e-4 * variances.sum()
