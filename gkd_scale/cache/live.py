"""The same batches with the teacher run live: no cache, the same views, the same order.

For one epoch over many images, for fresh augmentation in every epoch, or to check a cache: what a
cached run reads and what a live run computes agree within the codec's rounding. Unreadable images are
found by reading all once at the start, because the order counts readable images only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gkd_scale.cache.codecs.arithmetic import to_fp16
from gkd_scale.cache.codecs.registry import get_codec
from gkd_scale.cache.config import ViewConfig
from gkd_scale.cache.loader import Facts, Schedule, Slot, facts, spread_slots
from gkd_scale.cache.loader_times import LoaderTimes
from gkd_scale.cache.order import WINDOW, Order
from gkd_scale.cache.plan import Entry, make_plan
from gkd_scale.cache.source import Source
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.views import decode, make_view, open_entry
from gkd_scale.errors import DataError
from gkd_scale.images import UnreadableImage
from gkd_scale.prefetch import prefetch
from gkd_scale.types import Batch, Draw, Features, Teacher, UInt8Array


class LiveSource:
    """Micro batches of ``images`` through ``teacher``; implements BatchSource.

    ``view``, ``views``, ``view_seed`` and ``samples_per_shard`` play the part that a cache's spec plays;
    with equal values the batches are those of the cache. ``source`` reads ``images`` if they are a labelled
    dataset; labels are not used. Without ``views`` each epoch sees views of its own.
    """

    def __init__(
        self,
        images: str | Path,
        teacher: Teacher,
        *,
        source: Source | None = None,
        view: ViewConfig,
        views: int | None = None,
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
        self.times = LoaderTimes(workers)
        self._plan = plan = make_plan(images, samples_per_shard, source=source, seed=view_seed)
        self.notes = plan.notes
        """Lines about what lies beside the images."""
        entries = list(plan)
        reasons = list(prefetch(self._reason, entries, workers, depth=4 * workers))
        readable = [reason is None for reason in reasons]
        self._entries = [entry for entry, reason in zip(entries, reasons, strict=True) if reason is None]
        self.errors = {entry.name: reason for entry, reason in zip(entries, reasons, strict=True) if reason}
        """Images that are left out, and why."""
        if not self._entries:
            name, reason = next(iter(self.errors.items()))
            raise DataError(
                f"none of the {len(readable)} images of {images} could be read; {name}: {reason}",
                "check the folder",
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

    def batches(self, start: int, stop: int, draw: Draw | None = None) -> Iterator[Batch]:
        """This rank's micro batches of steps [start, stop); the teacher runs in the calling thread."""

        def read(slots: list[Slot]) -> tuple[UInt8Array, Facts]:
            sids = [self._entries[slot.sample].sid for slot in slots]
            return self._pixels(slots), facts(sids, slots, draw)

        micro_batches = self._schedule.micro_batches(start, stop)
        for pixels, about in prefetch(read, micro_batches, self._workers, depth=self._workers + 1):
            with self.times.timer("teacher"):
                features = self._as_stored(run_teacher(self._teacher, pixels))
            yield Batch(torch.from_numpy(pixels), features, *about)

    def bytes_of(self, _start: int, _stop: int) -> None:
        """Nothing comes from a cache."""

    def spread(self, most: int, teacher: int = 0) -> Iterator[Features]:
        """Features of at most ``most`` images, evenly spread over all views, or over the first."""
        assert teacher == 0, "one teacher runs live"
        for slots in spread_slots(self.num_samples, self._views or 1, most):
            yield self._as_stored(run_teacher(self._teacher, self._pixels(slots)))

    def images_hash(self) -> str:
        """SHA-256 over the names and sizes of the images."""
        return self._plan.hash()

    def _reason(self, entry: Entry) -> str | None:
        """Why an image cannot be read; None if it can."""
        try:
            open_entry(self._images, self._plan, entry)
        except UnreadableImage as error:
            return str(error)
        return None

    def _pixels(self, slots: list[Slot]) -> UInt8Array:
        """Pixels (B, 3, H, W) of one micro batch. Runs on the reading threads."""
        with self.times.read_timer():
            return np.stack([self._slot_pixels(slot) for slot in slots])

    def _slot_pixels(self, slot: Slot) -> UInt8Array:
        entry = self._entries[slot.sample]
        try:
            image = open_entry(self._images, self._plan, entry).image
        except UnreadableImage as error:
            raise DataError(
                f"{entry.name} of {self._images} can no longer be read: {error}", "check the images"
            ) from None
        number = slot.epoch if self._views is None else slot.epoch % self._views
        view = make_view(image, entry.sid, number, self.image_size, self._view, self._view_seed)
        return decode(view.jpeg)

    def _as_stored(self, features: Features) -> Features:
        """Features as a cache would give them back: rounded by the codec."""
        patches = [self._codec.decode(self._codec.encode(tokens)) for tokens in features.patches.numpy()]
        return Features(torch.from_numpy(to_fp16(features.cls.numpy())), torch.from_numpy(np.stack(patches)))
