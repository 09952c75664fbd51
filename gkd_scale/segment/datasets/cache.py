"""A teacher cache with labels, as a dataset: every stored view is a sample.

``gkd-scale cache-teacher --images ADAPTER:PATH`` keeps the labels. Images are the views as the teacher saw
them and labels went through the same crop and flip, so a centred view of the images' own shape is the dataset
itself and random views are a fixed augmentation of it; mIoU is counted at the size of the views.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gkd_scale.cache.reader import Cache
from gkd_scale.cache.views import decode
from gkd_scale.errors import DataError
from gkd_scale.text import nfc
from gkd_scale.types import SegSample, UInt8Array


def open_dataset(root: str | Path) -> CachedDataset:
    """Opens ``cache:PATH``; a URL is read through the mirror. DataError if the cache holds no labels.

    CacheError if it holds no pixels.
    """
    return CachedDataset(Cache.open(root))


class CachedDataset:
    """Views and labels of a cache; sample ``v·n + i`` is view v of image i."""

    def __init__(self, cache: Cache) -> None:
        cache.require_pixels(f"give {cache.spec.images_flag}")
        labels = cache.spec.labels
        if not labels:
            raise DataError(
                f"the cache {cache.path} holds no labels",
                "make one with: gkd-scale cache-teacher --images ADAPTER:PATH",
            )
        self.name = cache.path.name
        self.classes: Sequence[str] = [nfc(name) for name in labels["classes"]]
        self.palette: Sequence[tuple[int, int, int]] = [(r, g, b) for r, g, b in labels["palette"]]
        self.absent: Sequence[str] = [nfc(name) for name in labels.get("absent", ())]
        self._cache = cache

    @property
    def views(self) -> int:
        """Samples of one image."""
        return self._cache.views

    def __len__(self) -> int:
        return self.views * self._cache.num_samples

    def __getitem__(self, index: int) -> SegSample:
        view, at = self._place(index)
        members = self._cache.read_members(view, at, ("jpg", "label.png"))
        image = np.ascontiguousarray(decode(members["jpg"]).transpose(1, 2, 0))
        name = f"{self._cache.sid(at)}-v{view:02d}"
        return SegSample(name, image, _label(members["label.png"]))

    def label(self, index: int) -> UInt8Array:
        """The label (H, W) of a sample, without its image."""
        return _label(self._cache.read_members(*self._place(index), ("label.png",))["label.png"])

    def _place(self, index: int) -> tuple[int, int]:
        """The view and the number of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return divmod(index, self._cache.num_samples)


def _label(png: memoryview) -> UInt8Array:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.array(image)
