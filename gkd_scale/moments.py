"""Streaming mean, covariance and norms of tokens: one pass, memory C², any number of tokens.

Sums are kept in float64 around a fixed shift (the first batch's mean), so that a large mean does not eat
the precision of a small variance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

Float64 = npt.NDArray[np.float64]


class Moments:
    """Moments of vectors of ``dim`` channels. Norms are Euclidean, of each vector."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.norm_min, self.norm_max = np.inf, 0.0
        self._shift: Float64 | None = None
        self._sum = np.zeros(dim)
        self._outer = np.zeros((dim, dim))
        self._norms = 0.0

    def update(self, vectors: Array) -> None:
        """Add vectors (n, C) of any float type; n may be 0."""
        if not len(vectors):
            return
        wide = np.asarray(vectors, np.float32)
        if self._shift is None:
            self._shift = wide.mean(axis=0, dtype=np.float64)
        norms = np.linalg.norm(wide, axis=1)
        deviations = wide.astype(np.float64) - self._shift
        self.count += len(wide)
        self._sum += deviations.sum(axis=0)
        self._outer += deviations.T @ deviations
        self._norms += float(norms.sum(dtype=np.float64))
        self.norm_min = min(self.norm_min, float(norms.min()))
        self.norm_max = max(self.norm_max, float(norms.max()))

    @property
    def mean(self) -> Float64:
        """The mean (C,)."""
        assert self._shift is not None, "moments of nothing"
        return self._shift + self._sum / self.count

    @property
    def covariance(self) -> Float64:
        """The covariance (C, C), divided by the count."""
        offset = self._sum / self.count
        return self._outer / self.count - np.outer(offset, offset)

    @property
    def norm_mean(self) -> float:
        """The mean norm."""
        return self._norms / self.count

    def shares(self) -> Float64:
        """Share of the variance that the k + 1 leading principal components hold, (C,), rising to 1."""
        values = np.clip(np.linalg.eigvalsh(self.covariance)[::-1], 0, None)
        total = values.sum()
        return np.cumsum(values) / total if total > 0 else np.ones_like(values)
