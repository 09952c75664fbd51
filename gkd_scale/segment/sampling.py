"""Which image each position of the training stream takes: pure functions of (seed, position).

No state is kept between positions (:mod:`gkd_scale.order`), so a resume or another world size sees the
same images. Orders compose: a mixture has one order for each source.

- :class:`Uniform`: every image once an epoch, in a new permutation each.
- :class:`Mixture`: sources in fixed proportions, each of them in an order of its own.
- :class:`RareClass`: images of rare classes more often (DAFormer, Hoyer et al., 2022, arXiv 2111.14887).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gkd_scale import order
from gkd_scale.randomness import generator
from gkd_scale.types import Int64Array

BLOCK = 1000
"""Positions over which a mixture's proportions hold exactly, to 1/1000."""

RARE_SHARE = 0.0015
"""An image counts as one of class c if c has this share of its pixels (3000 of a 1914x1052 frame)."""


class Pick(NamedTuple):
    """``image``: index in the dataset. ``epoch``: numbers the image's appearances.

    ``focus``: a class that the crop should show, and the least share of the crop's pixels that it has.
    """

    epoch: int
    image: int
    focus: tuple[int, float] | None = None


Order = Callable[[int], Pick]
"""An endless sequence of picks, by position."""


# ----------------------------------------------------------------------------------------- uniform


def epoch_order(seed: int, epoch: int, images: int, *key: str | int) -> Int64Array:
    """The permutation of ``images`` indices in ``epoch``; ``key`` names one of several sources."""
    return generator("stage2", "order", seed, epoch, *key).permutation(images).astype(np.int64)


class Uniform:
    """Every image once an epoch. ``key`` keeps the permutations of several sources apart."""

    def __init__(self, seed: int, images: int, *key: str | int) -> None:
        self._epochs = order.Epochs(images, lambda epoch: epoch_order(seed, epoch, images, *key))

    def __call__(self, position: int) -> Pick:
        return Pick(*self._epochs.position(position))


# ----------------------------------------------------------------------------------------- mixture


def quotas(weights: Sequence[float], total: int = BLOCK) -> list[int]:
    """``total`` shared out in proportion to ``weights`` by largest remainders; each share at least 1."""
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    shares = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: max(0, total - sum(shares))]:
        shares[index] += 1
    shares[shares.index(max(shares))] -= sum(shares) - total
    return shares


@lru_cache(maxsize=8)
def _block(seed: int, block: int, counts: tuple[int, ...]) -> tuple[Int64Array, Int64Array]:
    """For each position of a block: its source, and the number of the source's earlier positions there."""
    sources = np.repeat(np.arange(len(counts)), counts)
    sources = generator("stage2", "mixture", seed, block).permutation(sources).astype(np.int64)
    before = np.zeros_like(sources)
    for source, count in enumerate(counts):
        before[sources == source] = np.arange(count)
    return sources, before


class Mixture:
    """Mixes the sources, which are concatenated in the dataset, in the proportions of ``weights``.

    Each block of 1000 positions has each source's quota in its own order. So the number of earlier picks of
    a source follows from the position alone, and each source is used up epoch by epoch.
    """

    def __init__(
        self, seed: int, sizes: Sequence[int], weights: Sequence[float], orders: Sequence[Order]
    ) -> None:
        self._seed = seed
        self._quotas = tuple(quotas(weights))
        self._offsets = [0, *accumulate(sizes)]
        self._orders = orders

    def __call__(self, position: int) -> Pick:
        block, place = divmod(position, BLOCK)
        sources, before = _block(self._seed, block, self._quotas)
        source = int(sources[place])
        pick = self._orders[source](block * self._quotas[source] + int(before[place]))
        return pick._replace(image=self._offsets[source] + pick.image)


# -------------------------------------------------------------------------------------- rare classes


def rare_class_probabilities(pixels: Int64Array, temperature: float) -> npt.NDArray[np.float64]:
    """P(c) = exp((1 - f_c) / T) / sum_k exp((1 - f_k) / T), with f_c the share of class c of all pixels.

    This is DAFormer's. ``pixels`` (images, K) counts labelled pixels; a class without any has probability 0.
    """
    share = pixels.sum(0) / max(1, pixels.sum())
    logits = np.where(share > 0, (1 - share) / temperature, -np.inf)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


class RareClass:
    """Draws a class by :func:`rare_class_probabilities`, then an image that shows it, uniformly.

    ``pixels`` (images, K) counts each image's pixels of each class. An image shows a class if the class has
    :data:`RARE_SHARE` of its labelled pixels; if no image does, each image with a pixel of the class counts.
    The crop should show half that share, as in DAFormer.
    """

    def __init__(self, seed: int, pixels: Int64Array, temperature: float, *key: str | int) -> None:
        self._seed, self._key = seed, key
        self._cumulative = np.cumsum(rare_class_probabilities(pixels, temperature))
        shares = pixels / np.maximum(1, pixels.sum(1, keepdims=True))
        self._images = [_images_with(shares[:, class_id]) for class_id in range(pixels.shape[1])]

    def __call__(self, position: int) -> Pick:
        rng = generator("stage2", "rare-class", self._seed, position, *self._key)
        class_id = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        images = self._images[class_id]
        return Pick(position, int(images[rng.integers(len(images))]), (class_id, RARE_SHARE / 2))


def _images_with(share: npt.NDArray[np.float64]) -> Int64Array:
    enough = np.flatnonzero(share >= RARE_SHARE)
    return (enough if enough.size else np.flatnonzero(share)).astype(np.int64)
