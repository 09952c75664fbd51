"""mIoU as Cityscapes defines it: one confusion matrix a domain, then IoU, then the mean.

Pixels are counted in int64 over all images and all ranks, at ground-truth size; a class is averaged
only where it occurs, in the ground truth or in the prediction. Nothing is averaged over images or
batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd_scale.errors import DataError
from gkd_scale.types import IGNORE, SegDataset


class Confusion:
    """``counts`` (K, K+1) int64: pixels of ground-truth class (row) that were predicted as (column).

    The last column is for pixels that were predicted as none of the classes (255): misses of their
    class, and nobody's false positives.
    """

    def __init__(self, classes: int, counts: Tensor | None = None) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes + 1, dtype=torch.int64) if counts is None else counts
        assert self.counts.shape == (classes, classes + 1) and self.counts.dtype == torch.int64

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count two maps of one shape; pixels whose ``truth`` is 255 do not count."""
        assert prediction.shape == truth.shape, (prediction.shape, truth.shape)
        if not truth.numel():
            return
        low, high = (int(value) for value in prediction.aminmax())
        assert low >= 0 and high <= IGNORE, f"prediction has {low}..{high}"
        pairs = truth.to(torch.int32) * (IGNORE + 1) + prediction.to(torch.int32)
        cells = torch.bincount(pairs.flatten(), minlength=(IGNORE + 1) ** 2).reshape(IGNORE + 1, -1)[:IGNORE]
        counts = torch.cat([cells[: self.classes, : self.classes], cells[: self.classes, IGNORE:]], 1)
        assert counts.sum() == cells.sum(), f"a class beyond the {self.classes} classes"
        self.counts += counts.to(self.counts.device)

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.classes, self.counts + other.counts)

    def iou(self) -> npt.NDArray[np.float64]:
        """(K,) intersection over union, 0..1; NaN for classes in neither ground truth nor prediction."""
        counts = self.counts.cpu().numpy()
        hits = np.diagonal(counts)
        union = counts.sum(0)[:-1] + counts.sum(1) - hits
        iou = np.full(self.classes, np.nan)
        np.divide(hits, union, out=iou, where=union > 0)
        return iou

    def miou(self, without: Sequence[int] = ()) -> float:
        """The mean IoU over classes that occur, 0..1; NaN if no pixel was counted.

        Classes ``without`` are left out of the mean; predicting them is still a miss.
        """
        iou = self.iou()
        iou[list(without)] = np.nan
        present = iou[~np.isnan(iou)]
        return float(present.mean()) if present.size else float("nan")

    def report(self, names: Sequence[str]) -> dict[str, float | None]:
        """IoU in percent by class name; None for a class that does not occur."""
        return {
            name: None if np.isnan(value) else 100.0 * float(value)
            for name, value in zip(names, self.iou(), strict=True)
        }


class Mean(NamedTuple):
    """``miou`` in % of a domain, over all of its classes but those ``without``."""

    miou: float
    without: list[str]


def mean_iou(name: str, total: Confusion, dataset: SegDataset, unlearned: Sequence[str]) -> Mean:
    """The mIoU of ``dataset``, without the classes that occur in no label of it or of training.

    The latter are ``unlearned``; ``name`` is for messages. DataError if no class is left, or if a class
    that the dataset calls absent does occur.
    """
    pixels = total.counts.sum(1)
    if not pixels.any():
        raise DataError(f"{name} has no labelled pixel: all labels are ignored", "check its labels")
    wrong = [cls for id, cls in enumerate(dataset.classes) if cls in dataset.absent and pixels[id]]
    if wrong:
        raise DataError(
            f"labels of {name} hold '{wrong[0]}', which is said to occur in none", "correct its absent.txt"
        )
    without = [id for id, cls in enumerate(dataset.classes) if cls in unlearned or cls in dataset.absent]
    miou = 100 * total.miou(without)
    if math.isnan(miou):
        raise DataError(f"no class of {name} is one that was trained on", "check --train and its absent.txt")
    return Mean(miou, [dataset.classes[id] for id in without])
