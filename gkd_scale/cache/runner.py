"""The builder of shards: threads read images and make views, the teacher turns batches of them into tokens,
and one thread encodes these and appends them to the shard.

On a GPU one batch is in flight: a thread of its own runs the teacher, so that the next batch is put together
meanwhile. The queues between the threads are short, so memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch

from gkd_scale.cache.codecs.arithmetic import to_fp16
from gkd_scale.cache.codecs.base import Codec, Float32
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.folder import ShardTask
from gkd_scale.cache.plan import ImagePlan
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.shard import ShardWriter, npy_bytes
from gkd_scale.cache.spec import Spec
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.views import MadeView, views_of
from gkd_scale.errors import CacheError
from gkd_scale.prefetch import BackgroundJobs
from gkd_scale.types import Teacher, UInt8Array


class BuildJob(NamedTuple):
    """What is built; the same for all builders."""

    cfg: CacheTeacherConfig
    codec: Codec
    spec: Spec
    plan: ImagePlan


class Events(NamedTuple):
    """What builders tell, from any thread: the report, views that are done, shards that are committed."""

    report: BuildReport
    advance: Callable[[int], None]
    on_commit: Callable[[ShardTask], None]


class ShardBuilder:
    """Builds shards one after the other with one teacher, on ``device``."""

    def __init__(self, job: BuildJob, teacher: Teacher, device: str, events: Events) -> None:
        self._cfg, self._codec, _, self._plan = job
        self._teacher, self._report, self._events = teacher, events.report, events
        self._spec_hash = job.spec.hash()
        self._writer = BackgroundJobs()
        on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        self._computer = BackgroundJobs(depth=1 if on_gpu else 0)
        self._open: list[ShardWriter] = []

    def run(self, tasks: Sequence[ShardTask]) -> None:
        """Build the shards of ``tasks``, in order; once only. After an error no half-written shard stays."""
        work = ((entry, task.view) for task in tasks for entry in self._plan.shard(task.shard))
        views = views_of(self._cfg, self._plan, work)
        try:
            with (
                contextlib.closing(cast("Generator[MadeView | str]", views)),
                self._writer,
                self._computer,
            ):
                for task in tasks:
                    self._shard(task, views)
        except BaseException:
            for shard in self._open:
                shard.abort()
            raise

    def _shard(self, task: ShardTask, views: Iterator[MadeView | str]) -> None:
        """Take the shard's views from ``views`` and hand them to the teacher in batches."""
        shard = ShardWriter(self._cfg.out, self._spec_hash, task.view, task.shard)
        self._open.append(shard)
        errors: dict[str, str] = {}
        batch: list[MadeView] = []
        for entry in self._plan.shard(task.shard):
            with self._report.timer("read"):
                view = next(views)
            if isinstance(view, str):
                errors[entry.sid] = view
                self._events.advance(1)
            else:
                batch.append(view)
            if len(batch) == self._cfg.batch_size:
                self._submit(shard, batch)
                batch = []
        if batch:
            self._submit(shard, batch)
        self._computer.submit(partial(self._queue_write, shard, partial(self._commit, shard, errors, task)))

    def _submit(self, shard: ShardWriter, batch: Sequence[MadeView]) -> None:
        pixels = np.stack([view.pixels for view in batch])
        self._computer.submit(partial(self._compute, shard, batch, pixels))

    def _compute(self, shard: ShardWriter, batch: Sequence[MadeView], pixels: UInt8Array) -> None:
        """Run the teacher on ``pixels`` (B, 3, H, W) and hand the tokens to the writer."""
        with self._report.timer("teacher"):
            features = run_teacher(self._teacher, pixels)
        cls, patches = features.cls.numpy(), features.patches.numpy()
        self._queue_write(shard, partial(self._write, shard, batch, cls, patches))
        self._events.advance(len(batch))

    def _queue_write(self, shard: ShardWriter, job: Callable[[], None]) -> None:
        """Queue ``job`` of ``shard`` for the writer. An error aborts the shard, and skips its later jobs."""

        def unless_aborted() -> None:
            if shard.aborted:
                return
            try:
                job()
            except BaseException:
                shard.abort()
                raise

        with self._report.timer("write"):
            self._writer.submit(unless_aborted)

    def _write(self, shard: ShardWriter, batch: Sequence[MadeView], cls: Float32, patches: Float32) -> None:
        """Encode and append; on the writer's thread. ``cls`` (B, C), ``patches`` (B, N, C)."""
        for view, cls_C, patches_NC in zip(batch, cls, patches, strict=True):
            size = shard.add(view.entry.sid, self._members(view, cls_C, patches_NC))
            self._report.count(samples=1, size=size)

    def _members(self, view: MadeView, cls: Float32, patches: Float32) -> dict[str, bytes]:
        """The files of one sample, by the end of their names."""
        try:
            arrays = {"cls.npy": to_fp16(cls), **self._codec.encode(patches)}
        except ValueError as error:
            raise CacheError(
                f"the teacher's tokens of {view.entry.name} (sid {view.entry.sid}) cannot be stored: {error}",
                "choose another --codec or --teacher-layer, or leave the image out",
            ) from None
        return {**{name: npy_bytes(array) for name, array in arrays.items()}, **view.members()}

    def _commit(self, shard: ShardWriter, errors: Mapping[str, str], task: ShardTask) -> None:
        """Make the shard exist; on the writer's thread."""
        shard.commit(errors)
        self._open.remove(shard)
        self._report.count(shards=1)
        self._events.on_commit(task)
