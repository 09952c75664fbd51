"""Views: an image becomes the exact pixels that teacher and student see.

Crop, resize, flip, colour and RandAugment come first, then JPEG; the bytes are stored and everybody reads the
decoded bytes. So student and teacher see the same pixels by construction, and nothing is ever replayed.
A view is a pure function of (seed, view, sid); what was drawn is recorded beside it.

User images are opened defensively: whatever is wrong with one becomes an :class:`UnreadableImage` with
a reason, and the build goes on without it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageEnhance

from gkd_scale.cache import augment
from gkd_scale.cache.config import CacheTeacherConfig, ViewConfig
from gkd_scale.cache.plan import Entry, ImagePlan
from gkd_scale.cache.source import LabelledSource, ViewSource
from gkd_scale.cache.spec import json_bytes
from gkd_scale.errors import one_line
from gkd_scale.images import Picture, UnreadableImage, open_bytes, open_image
from gkd_scale.prefetch import prefetch
from gkd_scale.randomness import generator
from gkd_scale.types import Size, UInt8Array

_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class View:
    """The pixels of one view as they are stored, and the parameters that were drawn for it.

    ``jpeg`` is empty if another cache stores them.
    """

    jpeg: bytes
    params: dict[str, Any]


# ------------------------------------------------------------------------------------- pixels


def make_view(image: Image.Image, sid: str, view: int, size: Size, cfg: ViewConfig, seed: int) -> View:
    """View number ``view`` of an RGB ``image`` at ``size`` (height, width); pure in (seed, view, sid)."""
    left, top, width, height = crop_box(image.size, sid, view, size, cfg, seed)
    flip = bool(generator("view.flip", seed, view, sid).random() < cfg.flip)
    pixels = image.resize(
        (size[1], size[0]),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
        reducing_gap=3.0,
    )
    if flip:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    color = _color_factors(sid, view, cfg, seed)
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), color, strict=False
    ):
        pixels = enhance(pixels).enhance(factor)
    operations = augment.draw(sid, view, seed, cfg.randaugment, cfg.magnitude)
    pixels = augment.apply(pixels, operations)
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=cfg.quality, subsampling=0)
    params = {"view": view, "crop": [left, top, width, height], "flip": flip, "color": color}
    params["randaugment"] = [[name, value] for name, value in operations]
    return View(buffer.getvalue(), params)


def view_label(label: UInt8Array, params: dict[str, Any], size: Size) -> bytes:
    """The label (H, W) of an image as its view shows it: a PNG of train ids at ``size``.

    ``params`` are the view's. Nearest neighbour throughout; 255 (ignored) beyond an edge that RandAugment
    moved.
    """
    left, top, width, height = params["crop"]
    box = (left, top, left + width, top + height)
    pixels = Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST, box=box)
    if params["flip"]:
        pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = augment.apply_geometry(pixels, [(name, value) for name, value in params["randaugment"]])
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


def decode(jpeg: bytes | memoryview) -> UInt8Array:
    """JPEG bytes to pixels (3, H, W) uint8: the one decoder of the project.

    It calls libjpeg-turbo itself: the pixels that Pillow gives, in half the time, without the GIL.
    """
    return np.ascontiguousarray(simplejpeg.decode_jpeg(jpeg, "RGB").transpose(2, 0, 1))


def crop_box(
    image_size: tuple[int, int], sid: str, view: int, size: Size, cfg: ViewConfig, seed: int
) -> tuple[int, int, int, int]:
    """(left, top, width, height) in pixels of an image of ``image_size`` (width, height).

    RandomResizedCrop of Inception: up to ten draws of area and aspect, else the centre. The aspect is
    relative to the target's, so a wide target gets wide crops.
    """
    aspect = size[1] / size[0]
    if cfg.crop == "center":
        return _center(image_size, aspect)
    rng = generator("view.crop", seed, view, sid)
    full_width, full_height = image_size
    log_ratio = (math.log(cfg.ratio[0]), math.log(cfg.ratio[1]))
    for _ in range(_CROP_ATTEMPTS):
        area = full_width * full_height * rng.uniform(*cfg.scale)
        ratio = aspect * math.exp(rng.uniform(*log_ratio))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            left = int(rng.integers(0, full_width - width + 1))
            top = int(rng.integers(0, full_height - height + 1))
            return left, top, width, height
    return _center(image_size, aspect)


def _center(image_size: tuple[int, int], aspect: float) -> tuple[int, int, int, int]:
    """The largest centred box of ``aspect`` (width over height)."""
    full_width, full_height = image_size
    width = max(1, min(full_width, round(full_height * aspect)))
    height = max(1, min(full_height, round(full_width / aspect)))
    return (full_width - width) // 2, (full_height - height) // 2, width, height


def _color_factors(sid: str, view: int, cfg: ViewConfig, seed: int) -> list[float]:
    """Factors of brightness, contrast and saturation; none if colour is off."""
    if cfg.color == 0:
        return []
    factors = generator("view.color", seed, view, sid).uniform(1 - cfg.color, 1 + cfg.color, size=3)
    return [round(float(factor), 4) for factor in factors]


# --------------------------------------------------------------------------------------- files


def open_entry(images: str | Path, plan: ImagePlan, entry: Entry) -> Picture:
    """An image of ``plan``, whose folder is ``images``, to upright RGB; UnreadableImage with the reason."""
    if plan.source is None:
        return open_image(Path(images) / entry.path)
    try:
        if isinstance(plan.source, LabelledSource):
            sample = plan.source.sample(entry.path)
            facts = {"size": [*sample.image.shape[:2]]}
            return Picture(Image.fromarray(sample.image), facts, sample.label)
        data = plan.source.read(entry.path)
    except OSError as error:
        raise UnreadableImage(error.strerror or one_line(error)) from None
    if not data:
        raise UnreadableImage("the file is empty")
    return open_bytes(data)


class MadeView(NamedTuple):
    """A view of an image, on its way to the teacher.

    ``source``: facts about the image's file; ``pixels`` (3, H, W) uint8; ``label``: a PNG of train ids.
    """

    entry: Entry
    view: View
    source: dict[str, Any]
    pixels: UInt8Array
    label: bytes | None

    def members(self) -> dict[str, bytes]:
        """The files that are stored beside the tokens, by the end of their names."""
        facts = {"sid": self.entry.sid, "path": self.entry.name, "source": self.source, **self.view.params}
        files = {"jpg": self.view.jpeg, "json": json_bytes(facts), "label.png": self.label}
        return {name: data for name, data in files.items() if data}


def view_of(cfg: CacheTeacherConfig, plan: ImagePlan, entry: Entry, view: int) -> MadeView | str:
    """View ``view`` of an image of ``plan``, whose folder is ``cfg.images``; or why it cannot be read."""
    if plan.view_source is not None:
        return _cached_view(plan.view_source, entry, view)
    try:
        picture = open_entry(cfg.images, plan, entry)
    except UnreadableImage as error:
        return str(error)
    new_view = make_view(picture.image, entry.sid, view, cfg.size, cfg.view, cfg.seed)
    label = None if picture.label is None else view_label(picture.label, new_view.params, cfg.size)
    return MadeView(entry, new_view, picture.source, decode(new_view.jpeg), label)


def views_of(
    cfg: CacheTeacherConfig, plan: ImagePlan, work: Iterable[tuple[Entry, int]]
) -> Iterator[MadeView | str]:
    """:func:`view_of` of each (image, view), in order, on threads that are some views ahead."""
    ahead = cfg.batch_size + 2 * cfg.threads
    return prefetch(lambda item: view_of(cfg, plan, *item), work, cfg.threads, ahead)


def _cached_view(source: ViewSource, entry: Entry, view: int) -> MadeView | str:
    """A view that another cache stores, without its JPEG."""
    stored_view = source.view(entry.sid, view)
    if isinstance(stored_view, str):
        return stored_view
    params = {key: value for key, value in stored_view.facts.items() if key not in ("sid", "path", "source")}
    return MadeView(entry, View(b"", params), stored_view.facts["source"], decode(stored_view.jpeg), None)
