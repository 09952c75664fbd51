"""The same batches with the teacher run live: no cache, the same views, the same order.

For one epoch over many images, or to check a cache: what a cached run reads and what a live run
computes agree within the codec's rounding. Unreadable images are found by reading all once at the
start, because the order counts readable images only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gkd_scale.cache.build import run_teacher
from gkd_scale.cache.codec import get_codec, to_fp16
from gkd_scale.cache.config import ViewConfig
from gkd_scale.cache.loader import Schedule, Slot, make_batch
from gkd_scale.cache.order import WINDOW, Order
from gkd_scale.cache.plan import Entry, make_plan
from gkd_scale.cache.views import UnreadableImage, decode, make_view, open_image
from gkd_scale.errors import DataError
from gkd_scale.prefetch import prefetch
from gkd_scale.types import Batch, Features, Teacher, UInt8Array


class LiveSource:
    """Micro batches of ``images`` through ``teacher``; implements BatchSource.

    ``view``, ``views``, ``view_seed`` and ``samples_per_shard`` play the part that a cache's spec plays;
    with equal values the batches are those of the cache.
    """

    def __init__(
        self,
        images: Path,
        teacher: Teacher,
        *,
        view: ViewConfig,
        views: int = 1,
        view_seed: int = 0,
        samples_per_shard: int = 512,
        codec: str = "fp16",
        global_batch: int,
        micro_batch: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        workers: int = 2,
        window: int = WINDOW,
    ) -> None:
        self.grid, self.image_size, self.teacher_dim = teacher.grid, teacher.image_size, teacher.dim
        self._images, self._teacher, self._codec = images, teacher, get_codec(codec)
        self._view, self._views, self._view_seed, self._workers = view, views, view_seed, workers
        plan = make_plan(images, samples_per_shard)
        readable = list(prefetch(self._is_readable, plan.entries, workers, depth=4 * workers))
        self._entries = [entry for entry, good in zip(plan.entries, readable, strict=True) if good]
        if not self._entries:
            raise DataError(
                f"none of the {len(readable)} images of {images} could be read", "check the folder"
            )
        sizes = [sum(readable[i : i + samples_per_shard]) for i in range(0, len(readable), samples_per_shard)]
        self.num_samples = len(self._entries)
        self._schedule = Schedule(
            Order(sizes, seed, window),
            global_batch=global_batch,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=rank,
            world=world,
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This rank's micro batches of steps [start, stop); the teacher runs in the calling thread."""
        ahead = prefetch(
            self._pixels, self._schedule.micro_batches(start, stop), self._workers, depth=self._workers + 1
        )
        for slots, pixels in ahead:
            features = self._as_stored(run_teacher(self._teacher, pixels))
            yield make_batch(
                torch.from_numpy(pixels), features, [self._entries[slot.sample].sid for slot in slots], slots
            )

    def _is_readable(self, entry: Entry) -> bool:
        try:
            open_image(self._images / entry.path)
        except UnreadableImage:
            return False
        return True

    def _pixels(self, slots: list[Slot]) -> tuple[list[Slot], UInt8Array]:
        """Pixels (B, 3, H, W) of one micro batch. Runs on the reading threads."""
        return slots, np.stack([self._one(slot) for slot in slots])

    def _one(self, slot: Slot) -> UInt8Array:
        entry = self._entries[slot.sample]
        try:
            image = open_image(self._images / entry.path).image
        except UnreadableImage as error:
            raise DataError(
                f"{self._images / entry.path} can no longer be read: {error}", "check the folder"
            ) from None
        made = make_view(
            image, entry.sid, slot.epoch % self._views, self.image_size, self._view, self._view_seed
        )
        return decode(made.jpeg)

    def _as_stored(self, features: Features) -> Features:
        """Features as a cache would give them back: rounded by the codec."""
        patches = [self._codec.decode(self._codec.encode(tokens)) for tokens in features.patches.numpy()]
        return Features(torch.from_numpy(to_fp16(features.cls.numpy())), torch.from_numpy(np.stack(patches)))
