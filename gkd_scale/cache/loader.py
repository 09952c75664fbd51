"""A cache as the source of stage 1's batches.

Threads read and decode whole micro batches ahead of the loop, in order. Bytes go from the page cache
into their place in the batch, which is in pinned memory if a GPU will fetch it. The only state is the step:
``batches(start, stop)`` gives the same batches at every call and for every number of threads, and
the same global batch for every world size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gkd_scale.cache.encoded import EncodedBatch, EncodedRows, stack
from gkd_scale.cache.joined import Joined
from gkd_scale.cache.loader_times import LoaderTimes
from gkd_scale.cache.order import WINDOW, Order
from gkd_scale.cache.reader import Cache, Caches, EncodedSample, SampleImage
from gkd_scale.cache.views import decode
from gkd_scale.errors import CacheError, DamageError
from gkd_scale.order import check_batches, positions
from gkd_scale.prefetch import prefetch
from gkd_scale.types import Batch, Draw, Drawn, Features


class Slot(NamedTuple):
    """One place of a micro batch: ``position`` in the global batch, ``epoch``, number of the ``sample``."""

    position: int
    epoch: int
    sample: int


class Schedule:
    """Which samples each micro batch of this rank holds: a pure function of the step."""

    def __init__(
        self, order: Order, *, global_batch: int, micro_batch: int, accumulation: int, rank: int, world: int
    ) -> None:
        check_batches(world, micro_batch, accumulation, global_batch)
        self._order, self._global_batch = order, global_batch
        self._share = {"micro": micro_batch, "accumulation": accumulation, "rank": rank, "world": world}

    def micro_batches(self, start: int, stop: int) -> Iterator[list[Slot]]:
        """The micro batches of optimizer steps [start, stop), in order."""
        for micro in positions(start, stop, **self._share):
            yield [Slot(p % self._global_batch, *self._order.position(p)) for p in micro]


Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Memory of a shape and dtype for a field of a micro batch."""


class _Tokens:
    """One teacher's tokens of a micro batch of ``count`` samples, filled row by row.

    With ``encoded`` its patch tokens stay as they are stored: :meth:`parts` has them.
    """

    def __init__(self, caches: Caches, count: int, encoded: bool, empty: Empty) -> None:
        self._caches, self._empty = caches, empty
        self._samples: list[EncodedSample | None] = [None] * count if encoded else []
        shape = (count, caches.grid[0] * caches.grid[1], caches.dim)
        cls = empty((count, caches.dim), torch.float16)
        self.features = Features(cls, cls.new_empty(0) if encoded else empty(shape, torch.float16))

    def read(self, row: int, view: int, index: int) -> SampleImage:
        """Read the tokens of a sample into a row, checked; its name and JPEG bytes."""
        cache, index = self._caches.find(index)
        cls = self.features.cls[row].numpy()
        if not self._samples:
            return cache.read_into(view, index, cls, self.features.patches[row].numpy())
        sample = self._samples[row] = cache.read_encoded(view, index, cls)
        return sample.image

    def parts(self) -> tuple[EncodedRows, ...]:
        """The encoded patch tokens by codec; none if they are in ``features``."""
        return stack([sample for sample in self._samples if sample is not None], self._empty)


def _require_views(has: int, views: int) -> int:
    """``views``; CacheError if the cache has fewer."""
    if views > has:
        raise CacheError(
            f"--views {views} is more than the {has} views of the cache",
            f"give at most {has}, or build a cache with --views {views}",
        )
    return views


class CachedSource:
    """Micro batches from caches, of one teacher or of several that are joined; implements BatchSource.

    Epoch e reads view e modulo ``views``, by default all that the caches hold. ``pin`` puts batches into
    pinned memory. With ``encoded`` a batch is an :class:`EncodedBatch`, unless no tokens need decoding. No
    tokens are read of teachers whose number is in ``silent``: batches hold the others' features.
    """

    def __init__(
        self,
        caches: Cache | Caches | Joined,
        *,
        silent: Collection[int] = (),
        global_batch: int,
        micro_batch: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        workers: int = 2,
        window: int = WINDOW,
        skip_corrupt: bool = False,
        views: int | None = None,
        pin: bool = False,
        encoded: bool = False,
    ) -> None:
        if isinstance(caches, Cache):
            caches = Caches([caches])
        self._views = _require_views(caches.views, views or caches.views)
        self._joined = caches if isinstance(caches, Joined) else None
        teachers = caches.teachers if isinstance(caches, Joined) else (caches,)
        self._teachers = [teacher for number, teacher in enumerate(teachers) if number not in silent]
        self.grid, self.teacher_dim = self._teachers[0].grid, self._teachers[0].dim
        self.image_size, self.num_samples = caches.image_size, caches.num_samples
        self._workers, self._skip, self._pin = workers, skip_corrupt, pin
        if self._joined is None:
            for cache in self._teachers[0].caches:
                cache.require_pixels(
                    "give both, the cache of the pixels first: --cache PIXELS --cache TOKENS"
                )
        self._encoded = [
            encoded and not all(cache.codec.verbatim for cache in teacher.caches)
            for teacher in self._teachers
        ]
        self.times = LoaderTimes(workers)
        self.skipped: dict[tuple[int, int], str] = {}
        """Samples that ``skip_corrupt`` passed over: (view, sample) to what is wrong."""
        self._schedule = Schedule(
            Order(caches.shard_sizes, seed, window),
            global_batch=global_batch,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=rank,
            world=world,
        )

    def batches(self, start: int, stop: int, draw: Draw | None = None) -> Iterator[Batch]:
        """This rank's micro batches of optimizer steps [start, stop); DamageError for damaged samples."""
        slots = self._schedule.micro_batches(start, stop)
        return prefetch(partial(self.load, draw=draw), slots, self._workers, depth=self._workers + 1)

    def bytes_of(self, start: int, stop: int) -> int:
        """The bytes that this rank fetches from the caches in optimizer steps [start, stop)."""
        return sum(
            cache.bytes_of(slot.epoch % self._views, index)
            for slots in self._schedule.micro_batches(start, stop)
            for slot in slots
            for cache, index in (caches.find(slot.sample) for caches in self._teachers)
        )

    def spread(self, most: int, teacher: int = 0) -> Iterator[Features]:
        """Features of at most ``most`` samples, evenly spread over all views; DamageError as ``batches``."""
        for slots in spread_slots(self.num_samples, self._views, most):
            yield self.read(slots, teacher)

    def read(self, slots: list[Slot], teacher: int = 0) -> Features:
        """One teacher's features of the micro batch of ``slots``, checked; DamageError as ``batches``."""
        tokens = _Tokens(self._teachers[teacher], len(slots), False, self._empty)
        with self.times.read_timer():
            self._read(slots, [tokens])
        return tokens.features

    def load(self, slots: list[Slot], draw: Draw | None = None) -> Batch:
        """Read, check and decode the micro batch of ``slots``, and ``draw`` for it, on a reading thread."""
        tokens = [
            _Tokens(caches, len(slots), encoded, self._empty)
            for caches, encoded in zip(self._teachers, self._encoded, strict=True)
        ]
        with self.times.read_timer():
            images = self._read(slots, tokens)
            parts = tuple(teacher.parts() for teacher in tokens)
        pixels = self._empty((len(slots), 3, *self.image_size), torch.uint8)
        with self.times.timer("decode"):
            for row, image in enumerate(images):
                pixels[row] = torch.from_numpy(decode(image.jpeg))
        about = facts([image.sid for image in images], slots, draw)
        features, *others = (teacher.features for teacher in tokens)
        if any(parts):
            return EncodedBatch(pixels, features, *about, tuple(others), parts)
        return Batch(pixels, features, *about, tuple(others))

    def _read(self, slots: list[Slot], tokens: Sequence[_Tokens]) -> list[SampleImage]:
        """Read the samples of ``slots`` for some teachers; their names and JPEG bytes."""

        def read(row: int, view: int, index: int) -> SampleImage:
            if self._joined is None:
                return tokens[0].read(row, view, index)
            self._joined.check_shard_of(view, index)
            images = [teacher.read(row, view, index) for teacher in tokens]
            with_pixels = (image for image in images if len(image.jpeg))
            return next(with_pixels, None) or images[0]._replace(jpeg=self._joined.jpeg(view, index))

        return [self._whole(slot, partial(read, row)) for row, slot in enumerate(slots)]

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for a field of a micro batch. PyTorch keeps pinned memory until copies from it are done."""
        if self._pin:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        kind = str(dtype).removeprefix("torch.")
        return torch.from_numpy(np.empty(shape, kind))  # NumPy asks for huge pages, PyTorch does not

    def _whole(self, slot: Slot, read: Callable[[int, int], SampleImage]) -> SampleImage:
        """``read(view, sample)`` of a slot.

        If that is damaged and ``skip_corrupt`` is set, the next whole sample is read. It depends on the
        slot and the files alone, so a resumed run reads the same.
        """
        view = slot.epoch % self._views
        if not self._skip:
            return read(view, slot.sample)
        for offset in range(self.num_samples):
            index = (slot.sample + offset) % self.num_samples
            try:
                return read(view, index)
            except DamageError as error:
                self.skipped[view, index] = error.message
        raise DamageError("no sample of the cache can be read", "see gkd-scale verify")


SPREAD_BATCH = 16


def spread_slots(samples: int, views: int, most: int) -> Iterator[list[Slot]]:
    """At most ``most`` of ``samples`` in ``views``, evenly spread, in batches: the same for every rank."""
    total = samples * views
    count = min(most, total)
    places = [divmod(place * total // count, samples) for place in range(count)]
    for start in range(0, count, SPREAD_BATCH):
        yield [Slot(0, view, sample) for view, sample in places[start : start + SPREAD_BATCH]]


Facts = tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...], Drawn | None]


def facts(sids: list[str], slots: list[Slot], draw: Draw | None) -> Facts:
    """The fields of a :class:`Batch` beside pixels and features: names, epochs, positions, what is drawn."""
    epochs, positions = (tuple(slot.epoch for slot in slots), tuple(slot.position for slot in slots))
    draws = draw(sids, epochs, positions) if draw is not None else None
    return tuple(sids), epochs, positions, draws
