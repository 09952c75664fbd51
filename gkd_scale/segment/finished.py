"""A finished stage-2 run in Python: images in, class maps out.

::

    import gkd_scale
    segmenter = gkd_scale.load_segmenter("runs/stage2")
    classes = segmenter.predict("street.jpg")            # (H, W) uint8
    names = [segmenter.classes[index] for index in np.unique(classes)]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale.errors import DataError
from gkd_scale.images import UnreadableImage, open_image, to_rgb
from gkd_scale.segment import export
from gkd_scale.segment.evaluate import pick_device
from gkd_scale.segment.inference import Inference, by_size, predict, prepare, require_bounded
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import Size, UInt8Array


class FinishedSegmenter:
    """A segmenter with the ``classes``, ``palette`` and ``image_size`` (H, W) that it was trained for."""

    def __init__(self, segmenter: Segmenter, card: export.Card, device: torch.device) -> None:
        self.module = segmenter.to(device)
        self.classes: Sequence[str] = tuple(card.classes)
        self.palette = tuple(card.palette)
        self.image_size = card.image_size
        self.device = device
        self._windows = card.windows

    def predict(
        self,
        images: object,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 8,
    ) -> UInt8Array | list[UInt8Array]:
        """Class ids (H, W) uint8 of one image, or a list of them for several.

        An image is a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), both uint8. Several are any
        iterable of them, an array (B, H, W, 3) or a tensor (B, 3, H, W). Images go through the model as in
        ``gkd-scale evaluate``; ``scales`` and ``flip`` average over sizes and mirror images. A file is read
        upright, as its EXIF says; a PIL image is taken as it is. Raises DataError for any other type, and for
        a file that cannot be read.
        """
        if _is_one(images):
            return self._classes([images], scales, flip, 1)[0]
        if not isinstance(images, Iterable):
            raise DataError(f"a {type(images).__name__} is no image", "give a path, a PIL image or an array")
        return self._classes(images, scales, flip, batch_size)

    @torch.no_grad()
    def _classes(
        self, images: Iterable[Any], scales: Sequence[float], flip: bool, batch_size: int
    ) -> list[UInt8Array]:
        how = Inference(self._windows, tuple(scales), flip)

        def load(image: Any) -> tuple[list[Tensor], Size]:
            pixels = _pixels(image)
            require_bounded("the image", pixels, self.image_size, how, slide="")
            views = [prepare(pixels, self.image_size, scale) for scale in how.scales]
            return views, (pixels.shape[0], pixels.shape[1])

        class_maps: list[UInt8Array] = []
        for views, sizes in by_size(map(load, images), how, batch_size, self.device):
            maps = predict(self.module, views, sizes, how, batch_size)
            class_maps += [entry.to(torch.uint8).cpu().numpy() for entry in maps]
        return class_maps


def load_segmenter(run: str | Path, device: str = "auto") -> FinishedSegmenter:
    """The segmenter of a finished stage-2 run; RunError or ModelError if it is none.

    ``device`` is auto (a GPU if there is one), cpu, cuda, cuda:1 ...
    """
    segmenter, card = export.load_segmenter(Path(run))
    return FinishedSegmenter(segmenter, card, pick_device(device))


def _is_one(images: object) -> bool:
    if isinstance(images, (np.ndarray, Tensor)):
        return images.ndim == 3
    return isinstance(images, (str, Path, Image.Image))


def _pixels(image: Any) -> UInt8Array:
    """One image as RGB (H, W, 3) uint8."""
    try:
        if isinstance(image, (str, Path)):
            return np.asarray(open_image(Path(image)).image)
        if isinstance(image, Image.Image):
            return np.asarray(to_rgb(image))
    except (OSError, UnreadableImage) as error:
        what = image if isinstance(image, (str, Path)) else "the PIL image"
        raise DataError(f"{what} cannot be read: {error}", "give another image") from None
    if 0 in getattr(image, "shape", ()):
        raise DataError(f"an image of {tuple(image.shape)} has no pixels", "leave it out")
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        return image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    what = f"{image.dtype} of {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    raise DataError(
        f"{what} is no image", "give uint8 values 0..255: an array (H, W, 3) or a tensor (3, H, W), in RGB"
    )
