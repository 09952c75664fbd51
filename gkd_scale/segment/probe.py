"""A linear or nearest-neighbour probe of frozen patch tokens: their mIoU, in seconds.

A search needs an honest score often and cheaply. The distillation loss is none, since its scale moves
with its weights; a segmentation head needs minutes. The probe fits the tokens of labelled source images in
closed form and scores held-in images at ground-truth size, with the same confusion matrix as every other
mIoU here. It has no random numbers: equal weights give equal scores.

Shapes: n images, N = h·w tokens of a grid, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from gkd_scale.models.tokens import to_map
from gkd_scale.prefetch import prefetch
from gkd_scale.segment.heads.base import upsample
from gkd_scale.segment.metrics import Confusion
from gkd_scale.types import Features, Grid, SegDataset, Size

BATCH = 16
RIDGE = 1e-3
"""Share of the mean squared feature that is added to the diagonal of the normal equations."""
NEIGHBOURS = 20
BANK = 20_000
"""Most tokens that the nearest-neighbour probe keeps."""
TEMPERATURE = 0.07

Encoder = Callable[[Tensor], Features]
"""Pixels (B, 3, H, W) uint8 to features, patches row-major on the encoder's grid."""
Classifier = Callable[[Tensor], Tensor]
"""Tokens (M, C) to class scores (M, K)."""


@dataclass(frozen=True)
class Examples:
    """Images in memory: ``pixels`` (n, 3, H, W) uint8 of one size, ``labels`` (H', W') uint8 at theirs."""

    pixels: Tensor
    labels: Sequence[Tensor]
    classes: int

    def batches(self, size: int) -> Iterator[tuple[Tensor, Sequence[Tensor]]]:
        """Pixels and labels of ``size`` images after the other, in order."""
        for start in range(0, len(self.labels), size):
            yield self.pixels[start : start + size], self.labels[start : start + size]


def load(dataset: SegDataset, size: Size, *, most: int, workers: int = 2) -> Examples:
    """At most ``most`` images of ``dataset``, evenly spread, resized to ``size``; labels as they are."""
    count = min(most, len(dataset))
    indices = [index * len(dataset) // count for index in range(count)]

    def read(index: int) -> tuple[Tensor, Tensor]:
        sample = dataset[index]
        pixels = torch.from_numpy(np.array(sample.image)).permute(2, 0, 1)
        return T.resize(pixels, list(size), antialias=True), torch.from_numpy(np.array(sample.label))

    pixels, labels = zip(*prefetch(read, indices, workers, 4 * workers), strict=True)
    return Examples(torch.stack(pixels), labels, len(dataset.classes))


def shown_in(data: Examples) -> set[int]:
    """The classes that occur in the labels."""
    return {int(value) for label in data.labels for value in label.unique() if value < data.classes}


@torch.no_grad()
def probe(encode: Encoder, grid: Grid, train: Examples, val: Examples, kind: str = "linear") -> Confusion:
    """The confusion on ``val`` of a classifier of ``encode``'s tokens that was fitted on ``train``.

    ``kind`` is ``linear`` (ridge regression on each token's class shares) or ``knn`` (weighted cosine
    neighbours). It is not collective: one process does all of it.
    """
    assert train.classes == val.classes, (train.classes, val.classes)
    classify = {"linear": fit_linear, "knn": fit_neighbours}[kind](_tokens(encode, grid, train))
    total = Confusion(val.classes)
    for pixels, labels in val.batches(BATCH):
        tokens = encode(pixels).patches.float()
        scores = torch.stack([classify(image_tokens) for image_tokens in tokens]).float()
        tally(total, to_map(scores, grid), labels)
    return total


def tally(total: Confusion, maps: Tensor, labels: Sequence[Tensor]) -> None:
    """Count class scores (B, K, h, w) against ``labels``, each at its own size."""
    for scores, label in zip(maps, labels, strict=True):
        size = (label.shape[0], label.shape[1])
        total.update(upsample(scores[None], size).argmax(1)[0].cpu(), label)


Pairs = Iterator[tuple[Tensor, Tensor]]
"""Batches of tokens (M, C) and the class shares (M, K) of the pixels under them; ignored pixels count 0."""


def _tokens(encode: Encoder, grid: Grid, data: Examples) -> Pairs:
    for pixels, labels in data.batches(BATCH):
        tokens = encode(pixels).patches.float().flatten(0, 1)
        shares = [class_shares(label, data.classes, grid) for label in labels]
        yield tokens, torch.cat(shares).to(tokens.device)


def class_shares(label: Tensor, classes: int, grid: Grid) -> Tensor:
    """(h·w, K): the share of each class in each cell of ``grid``; a row sums to its labelled share."""
    shares = [F.adaptive_avg_pool2d((label == k).float()[None], grid).flatten() for k in range(classes)]
    return torch.stack(shares, 1)


def fit_linear(pairs: Pairs) -> Classifier:
    """Ridge regression of class shares on tokens and a constant, by the normal equations in float64.

    Each token is weighted by its labelled share.
    """
    ridge = Ridge()
    for tokens, shares in pairs:
        ridge.update(tokens, shares)
    return ridge.solve()


class Ridge:
    """The normal equations of :func:`fit_linear`, added up batch by batch."""

    def __init__(self) -> None:
        self._gram = self._moment = torch.zeros(())

    def update(self, tokens: Tensor, shares: Tensor) -> None:
        """Add tokens (M, C) and their class shares (M, K)."""
        x = _with_constant(tokens)
        self._gram = self._gram + (x * shares.sum(1, keepdim=True)).T @ x
        self._moment = self._moment + x.T @ shares.double()

    def solve(self) -> Classifier:
        """The classifier of all tokens that were added."""
        gram = self._gram
        diagonal = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        solution = torch.linalg.lstsq((gram + diagonal).cpu(), self._moment.cpu()).solution
        weights = solution.to(gram.device)
        return lambda tokens: _with_constant(tokens) @ weights


def _with_constant(tokens: Tensor) -> Tensor:
    return F.pad(tokens.double(), (0, 1), value=1.0)


def fit_neighbours(pairs: Pairs) -> Classifier:
    """Class shares of the most similar training tokens (cosine), weighted by exp(similarity / T)."""
    batches = [(F.normalize(tokens, dim=1), shares) for tokens, shares in pairs]
    bank, shares = (torch.cat(parts) for parts in zip(*batches, strict=True))
    mask = shares.sum(1) > 0
    bank, shares = bank[mask], shares[mask]
    step = -(-len(bank) // BANK)
    bank, shares = bank[::step], shares[::step]

    def classify(tokens: Tensor) -> Tensor:
        similarity, index = (F.normalize(tokens, dim=1) @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
        return ((similarity / TEMPERATURE).softmax(1)[..., None] * shares[index]).sum(1)

    return classify
