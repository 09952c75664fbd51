"""``cache-teacher``: images in, a whole cache out, whatever happens on the way.

Three things run at once: threads read images and make views, the teacher turns batches of them into
tokens, and one writer behind it encodes and appends to the shard. Queues between them are short, so
memory does not grow with the number of images.

The plan fixes shards and batches before the start, and batches never span shards. A shard's bytes
therefore depend on its images alone: a build that was killed redoes the shards that have no index and
ends with the same bytes as one that was not. ``manifest.parquet`` is written last; where it is, the
cache is complete.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from rich.console import Group
from rich.live import Live
from rich.text import Text

import gkd_scale
from gkd_scale import console
from gkd_scale.cache.cluster import Done, Load, distribute
from gkd_scale.cache.codec import (
    STATE,
    Codec,
    Float32,
    fit_codec,
    get_codec,
    is_fitted,
    load_codec,
    state_bytes,
    state_hash,
    to_fp16,
)
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.manifest import CHECKSUM, MANIFEST, finish, read_manifest_info
from gkd_scale.cache.plan import PLAN, Entry, Plan, make_plan, read_plan_sizes, write_plan
from gkd_scale.cache.remote import Outbox
from gkd_scale.cache.shard import (
    ShardWriter,
    index_path,
    json_bytes,
    npy_bytes,
    read_info,
    tar_path,
)
from gkd_scale.cache.source import Labelled, Source
from gkd_scale.cache.spec import SPEC, Spec, read_spec, refuse_other, write_spec
from gkd_scale.cache.views import (
    View,
    decode,
    make_view,
    open_from,
    view_label,
)
from gkd_scale.errors import CacheError, DamageError, DataError, ModelError, disk_full
from gkd_scale.files import LOCK, TEMPORARY, claimed, sha256_file, write_bytes
from gkd_scale.images import UnreadableImage, open_image
from gkd_scale.moments import Moments
from gkd_scale.prefetch import Behind, prefetch
from gkd_scale.types import Features, Teacher, UInt8Array

T = TypeVar("T")

_SHOWN_ERRORS = 5
_COUNTING = threading.Lock()


@dataclass
class Seconds:
    """Where the time went, as the teacher saw it: waiting for images, computing, waiting for the writer."""

    read: float = 0.0
    teacher: float = 0.0
    write: float = 0.0
    total: float = 0.0


@dataclass
class BuildReport:
    """What a build did. ``images`` counts source images, ``errors`` maps an unreadable one to the reason.

    ``notes`` say what lies beside the images and is no image.
    """

    out: Path
    images: int
    views: int
    shards: int
    errors: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shards_built: int = 0
    samples_built: int = 0
    bytes_written: int = 0
    seconds: Seconds = field(default_factory=Seconds)

    def count(self, *, shards: int = 0, samples: int = 0, size: int = 0) -> None:
        """Add what was built; from any thread."""
        with _COUNTING:
            self.shards_built += shards
            self.samples_built += samples
            self.bytes_written += size

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        if self.shards_built == 0:
            lines = [f"{self.out} is already complete: {self._content()}"]
        else:
            s = self.seconds
            rate = self.samples_built / s.total if s.total else 0.0
            lines = [
                f"{self.out} is complete: {self._content()}",
                f"{self.samples_built} samples, {self.bytes_written / 1e6:.1f} MB in {s.total:.1f} s "
                f"({rate:.1f} images/s; waiting for images {s.read:.1f} s, teacher {s.teacher:.1f} s, "
                f"waiting for the writer {s.write:.1f} s)",
            ]
        if self.errors:
            lines.append(f"{len(self.errors)} of {self.images} images could not be read and are left out:")
            lines += [f"  {name}: {reason}" for name, reason in list(self.errors.items())[:_SHOWN_ERRORS]]
            lines.append(f"all are listed in {self.out / MANIFEST} (status 'error')")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def _content(self) -> str:
        return f"{self.images - len(self.errors)} images x {self.views} views in {self.shards} shards"


def build(
    cfg: CacheTeacherConfig,
    teacher: Teacher,
    *,
    load: Load | None = None,
    source: Source | None = None,
    outbox: Outbox | None = None,
    quiet: bool = False,
) -> BuildReport:
    """Make the cache that ``cfg`` describes, or go on with it. ``quiet`` shows no progress bar.

    ``load(device)`` makes more teachers, for the other devices of ``cfg.device`` and for ``cfg.ray``;
    ``source`` is what ``cfg.images`` names where that is a labelled dataset; ``outbox`` sends what is built
    in ``cfg.out``, its folder, to where it will live.

    Raises ConfigError, DataError, CacheError, ModelError or DiskFullError for what the user can mend;
    whatever is raised, the same command goes on later.
    """
    started = time.monotonic()
    is_fitted(cfg.codec)
    plan = make_plan(cfg.images, cfg.samples_per_shard, skip=cfg.out, source=source)
    spec = make_spec(cfg, teacher, plan)
    try:
        with claimed(cfg.out, CacheError):
            _refuse_foreign(cfg.out)
            codec = _codec(cfg, teacher, plan)
            spec = replace(spec, codec_state=state_hash(state_bytes(codec)))
            _prepare(cfg.out, spec, plan, codec)
            if outbox is not None:
                outbox.begin()
            report = BuildReport(cfg.out, len(plan.entries), spec.views, spec.views * spec.shards)
            report.notes = plan.notes
            if todo := _missing(cfg.out, spec, outbox):
                with (
                    _Display(report, spec.views * len(plan.entries), todo, plan, quiet) as display,
                    Behind() as sender,
                ):

                    def built(task: _Task) -> None:
                        if outbox is not None:
                            sender.submit(lambda: outbox.send(*task))

                    events = _Events(display.advance, built)
                    _build(_Job(cfg, codec, spec, plan), todo, teacher, load, report, events)
            report.errors = finish(cfg.out, spec, plan)
            if outbox is not None:
                outbox.finish()
    except OSError as error:
        raise _explained(error, cfg.out) from None
    report.seconds.total = time.monotonic() - started
    return report


def make_spec(cfg: CacheTeacherConfig, teacher: Teacher, plan: Plan) -> Spec:
    """The spec of what ``cfg`` asks for; ModelError where the teacher takes another image size."""
    if tuple(teacher.image_size) != cfg.size:
        raise ModelError(
            f"the teacher takes images of {teacher.image_size[0]}x{teacher.image_size[1]}, not "
            f"{cfg.size[0]}x{cfg.size[1]}",
            "change --image-size",
        )
    return Spec(
        teacher=teacher.fingerprint(),
        dim=teacher.dim,
        grid=(teacher.grid[0], teacher.grid[1]),
        image_size=cfg.size,
        codec=cfg.codec,
        view=asdict(cfg.view),
        views=cfg.views,
        seed=cfg.seed,
        images=len(plan.entries),
        samples_per_shard=cfg.samples_per_shard,
        plan=plan.hash(),
        labels=plan.source.labels if isinstance(plan.source, Labelled) else {},
    )


# --------------------------------------------------------------------------------- the folder


class _Task(NamedTuple):
    """One shard of one view: the unit of work and of resuming."""

    view: int
    shard: int


def _explained(error: OSError, out: Path) -> Exception:
    """What the user can mend as an error of ours; anything else as it is."""
    where = error.filename or out
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return CacheError(f"{where} cannot be written: {error.strerror}", "choose another --out")
    return disk_full(error, where) or error


def _refuse_foreign(folder: Path) -> None:
    """CacheError where ``folder`` holds something that is not a cache, whole or begun."""
    ours = {LOCK, SPEC + TEMPORARY, STATE, STATE + TEMPORARY}
    if (folder / MANIFEST).exists() or (folder / PLAN).exists():
        return  # a cache that lost its spec
    if not (folder / SPEC).exists() and (foreign := {path.name for path in folder.iterdir()} - ours):
        raise CacheError(
            f"{folder} is not empty and not a teacher cache (it holds {sorted(foreign)[0]})",
            "choose another --out",
        )


def _prepare(folder: Path, spec: Spec, plan: Plan, codec: Codec) -> None:
    """Refuse another spec, clear what a kill left, and write the codec's state, the spec and the plan."""
    if (folder / SPEC).exists():
        try:
            refuse_changed(folder, read_spec(folder), spec, plan)
        except DamageError:
            if not _shards_are_of(folder, spec):
                raise
            (folder / SPEC).unlink()
    elif any(folder.glob("v*/shard-*.parquet")) and not _shards_are_of(folder, spec):
        raise CacheError(
            f"{folder} holds shards of another spec, and has lost its {SPEC}",
            "choose another --out, or repeat the options that made this cache",
        )
    _remove_parts(folder)
    if (state := state_bytes(codec)) is not None:
        write_bytes(folder / STATE, state)
    if not (folder / SPEC).exists():
        versions = {"gkd-scale": gkd_scale.__version__}
        versions |= {name: importlib.metadata.version(name) for name in ("pillow", "pyarrow", "numpy")}
        write_spec(spec, folder, versions)
    write_plan(plan, folder / PLAN)


def _remove_parts(folder: Path) -> None:
    """Remove what was being written when a process died."""
    for stale in [*folder.glob(f"*{TEMPORARY}"), *folder.glob(f"v*/*{TEMPORARY}")]:
        stale.unlink(missing_ok=True)


def refuse_changed(folder: Path, old: Spec, new: Spec, plan: Plan) -> None:
    """CacheError that says what differs, where ``new``, over ``plan``, is not what ``folder`` holds."""
    refuse_other(folder, old, new, "" if old.plan == new.plan else _changed_images(folder, plan))


def _shards_are_of(folder: Path, spec: Spec) -> bool:
    """Whether a whole manifest or index in ``folder`` says that what is there is of ``spec``."""
    with contextlib.suppress(Exception):
        return read_manifest_info(folder).spec == spec.hash()
    for path in sorted(folder.glob("v*/shard-*.parquet")):
        with contextlib.suppress(Exception):
            return read_info(path).spec == spec.hash()
    return False


def _codec(cfg: CacheTeacherConfig, teacher: Teacher, plan: Plan) -> Codec:
    """The codec: the one that the folder's spec names where it can be read, else made or fitted."""
    if not is_fitted(cfg.codec):
        return get_codec(cfg.codec)
    with contextlib.suppress(OSError, CacheError, DamageError):
        spec = read_spec(cfg.out)
        if spec.codec == cfg.codec:
            return load_codec(spec.codec, (cfg.out / STATE).read_bytes(), spec.codec_state)
    return _fit(cfg, teacher, plan)


def _fit(cfg: CacheTeacherConfig, teacher: Teacher, plan: Plan) -> Codec:
    """The codec for the patch tokens of ``cfg.codec_fit`` images of the plan, evenly spaced, view 0.

    A function of the images, the teacher and the batch size. DataError where no image can be read.
    """
    chosen = plan.entries[:: max(1, len(plan.entries) // cfg.codec_fit)][: cfg.codec_fit]
    made = prefetch(
        lambda e: view_of(cfg, plan.source, e, 0), chosen, cfg.threads, cfg.batch_size + 2 * cfg.threads
    )
    moments = Moments(teacher.dim)
    batch: list[UInt8Array] = []
    for last, item in _with_last(made):
        if not isinstance(item, str):
            batch.append(item.pixels)
        if batch and (last or len(batch) == cfg.batch_size):
            tokens = run_teacher(teacher, np.stack(batch)).patches.numpy()
            moments.update(tokens.reshape(-1, teacher.dim))
            batch = []
    if not moments.count:
        raise DataError(f"none of {len(chosen)} images of {cfg.images} could be read", "check --images")
    return fit_codec(cfg.codec, moments.mean, moments.covariance)


def _with_last(items: Iterator[T]) -> Iterator[tuple[bool, T]]:
    """Each item, and whether it is the last."""
    held = next(items, None)
    for item in items:
        yield False, cast("T", held)
        held = item
    if held is not None:
        yield True, held


def _changed_images(folder: Path, plan: Plan) -> str:
    """How the image folder differs from the plan on disk, in words."""
    try:
        old = read_plan_sizes(folder / PLAN)
    except Exception:  # a damaged plan must not hide that the folder changed
        return f"{PLAN} cannot be read to say how"
    new = {entry.sid: (entry.name, entry.bytes) for entry in plan.entries}
    groups = {
        "added": [new[sid][0] for sid in new if sid not in old],
        "removed": [old[sid][0] for sid in old if sid not in new],
        "resized": [new[sid][0] for sid in new if sid in old and old[sid][1] != new[sid][1]],
    }
    return ", ".join(
        f"{len(names)} {what} ({names[0]}{' …' * (len(names) > 1)})"
        for what, names in groups.items()
        if names
    )


def _missing(folder: Path, spec: Spec, outbox: Outbox | None) -> list[_Task]:
    """The shards to build, in order. What is left of them goes, and with it the mark of completeness."""
    try:
        files = read_manifest_info(folder).files
    except Exception:  # none yet, or damaged: the shards speak for themselves
        files = {}
    tasks = [_Task(view, shard) for view in range(spec.views) for shard in range(spec.shards)]
    todo = [task for task in tasks if not _is_built(folder, spec, task, files, outbox)]
    if todo:
        for task in todo:
            index_path(folder, *task).unlink(missing_ok=True)
        for name in (MANIFEST, CHECKSUM):
            (folder / name).unlink(missing_ok=True)
    return todo


def _is_built(folder: Path, spec: Spec, task: _Task, files: Mapping[str, str], outbox: Outbox | None) -> bool:
    """Whether a shard is there: its index is whole and of this spec, and the tar (here or sent) whole."""
    path = index_path(folder, *task)
    try:
        known = files.get(path.relative_to(folder).as_posix())
        info = read_info(path)
        return (
            (info.spec, info.view, info.shard) == (spec.hash(), *task)
            and _tar_bytes(folder, task, outbox) == info.tar_bytes
            and (known is None or sha256_file(path) == known)
        )
    except Exception:  # missing or damaged in whatever way: build it again
        return False


def _tar_bytes(folder: Path, task: _Task, outbox: Outbox | None) -> int | None:
    """Bytes of a shard's tar, here or where it was sent."""
    path = tar_path(folder, *task)
    if outbox is not None and not path.exists():
        return outbox.sent_bytes(*task)
    return path.stat().st_size


# ----------------------------------------------------------------------------------- the runner


class _Made(NamedTuple):
    """A view on its way to the teacher: ``pixels`` (3, H, W) uint8."""

    entry: Entry
    view: View
    source: dict[str, Any]
    pixels: UInt8Array
    label: bytes | None


def view_of(cfg: CacheTeacherConfig, source: Source | None, entry: Entry, view: int) -> _Made | str:
    """One image (of a source, or of a folder) to one view, or the reason why not; for reading threads."""
    try:
        if source is None:
            opened = open_image(Path(cfg.images) / entry.path)
        else:
            opened = open_from(source, entry.path)
    except UnreadableImage as error:
        return str(error)
    made = make_view(opened.image, entry.sid, view, cfg.size, cfg.view, cfg.seed)
    label = None if opened.label is None else view_label(opened.label, made.params, cfg.size)
    return _Made(entry, made, opened.source, decode(made.jpeg), label)


class _Events(NamedTuple):
    """What the caller hears: samples that are done, and shards that are committed."""

    advance: Callable[[int], None]
    built: Callable[[_Task], None]


class _Job(NamedTuple):
    """What is built; the same for all builders."""

    cfg: CacheTeacherConfig
    codec: Codec
    spec: Spec
    plan: Plan

    def builder(self, teacher: Teacher) -> Callable[[_Task], Done]:
        """A function that builds one shard with ``teacher``; runs in a worker."""

        def shard(task: _Task) -> Done:
            report = BuildReport(self.cfg.out, 0, 0, 0)
            _Builder(self, teacher, report, _Events(lambda _: None, lambda _: None)).run([_Task(*task)])
            return Done(report.samples_built, report.bytes_written)

        return shard


def _build(
    job: _Job,
    todo: Sequence[_Task],
    teacher: Teacher,
    load: Load | None,
    report: BuildReport,
    events: _Events,
) -> None:
    """Build ``todo`` here, on several devices of this machine, or on a Ray cluster."""
    if job.cfg.ray is not None and load is not None:

        def finished(task: _Task, done: Done) -> None:
            report.count(shards=1, samples=done.samples, size=done.bytes)
            events.advance(len(job.plan.shard(task.shard)))
            events.built(task)

        distribute(todo, job.builder, load, job.cfg.ray, finished)
        _remove_parts(job.cfg.out)  # of workers that died
        return
    others = [load(device) for device in job.cfg.devices[1:]] if load is not None else []
    teachers = [teacher, *others]
    if len(teachers) == 1:
        _Builder(job, teacher, report, events).run(todo)
        return
    failed = threading.Event()

    def advance(samples: int) -> None:
        if failed.is_set():
            raise _StoppedError
        events.advance(samples)

    with ThreadPoolExecutor(len(teachers), thread_name_prefix="device") as pool:
        builders = [_Builder(job, one, report, events._replace(advance=advance)) for one in teachers]
        runs = [pool.submit(one.run, todo[at :: len(builders)]) for at, one in enumerate(builders)]
        errors = []
        for run in as_completed(runs):
            if (error := run.exception()) is not None:
                failed.set()
                errors.append(error)
    if errors:
        raise errors[0]


class _StoppedError(Exception):
    """Another device failed: stop here too."""


class _Builder:
    """Builds shards, one after the other, with reading ahead and writing behind."""

    def __init__(self, job: _Job, teacher: Teacher, report: BuildReport, events: _Events) -> None:
        self.cfg, self.codec, self.spec, self.plan = job
        self.teacher, self.report = teacher, report
        self.advance, self.built = events
        self.spec_hash = job.spec.hash()

    def run(self, todo: Sequence[_Task]) -> None:
        """Build the shards of ``todo``, in order."""
        work = ((task.view, entry) for task in todo for entry in self.plan.shard(task.shard))
        ahead = self.cfg.batch_size + 2 * self.cfg.threads
        made = prefetch(
            lambda item: view_of(self.cfg, self.plan.source, item[1], item[0]), work, self.cfg.threads, ahead
        )
        with (
            contextlib.closing(cast("Generator[_Made | str]", made)),
            Behind() as writer,
        ):
            for task in todo:
                self._shard(task, made, writer)

    def _shard(self, task: _Task, made: Iterator[_Made | str], writer: Behind) -> None:
        """Take the shard's views from ``made``, run the teacher, hand its samples to the writer."""
        shard = ShardWriter(self.cfg.out, self.spec_hash, task.view, task.shard)
        errors: dict[str, str] = {}
        batch: list[_Made] = []
        seconds = self.report.seconds
        try:
            for entry in self.plan.shard(task.shard):
                with _clock(seconds, "read"):
                    item = next(made)
                if isinstance(item, str):
                    errors[entry.sid] = item
                    self.advance(1)
                else:
                    batch.append(item)
                if len(batch) == self.cfg.batch_size:
                    self._batch(shard, batch, writer)
                    batch = []
            if batch:
                self._batch(shard, batch, writer)
            with _clock(seconds, "write"):
                writer.submit(lambda: self._commit(shard, errors, task))
        except BaseException:
            writer.drain()
            shard.abort()
            raise

    def _batch(self, shard: ShardWriter, batch: Sequence[_Made], writer: Behind) -> None:
        seconds = self.report.seconds
        with _clock(seconds, "teacher"):
            features = run_teacher(self.teacher, np.stack([item.pixels for item in batch]))
        cls, patches = features.cls.numpy(), features.patches.numpy()
        with _clock(seconds, "write"):
            writer.submit(lambda: self._write(shard, batch, cls, patches))
        self.advance(len(batch))

    def _write(self, shard: ShardWriter, batch: Sequence[_Made], cls: Float32, patches: Float32) -> None:
        """Encode and append; runs on the writer's thread. ``cls`` (B, C), ``patches`` (B, N, C)."""
        if shard.aborted:
            return
        with _abort_on_error(shard):
            for item, cls_C, patches_NC in zip(batch, cls, patches, strict=True):
                size = shard.add(item.entry.sid, self._members(item, cls_C, patches_NC))
                self.report.count(samples=1, size=size)

    def _members(self, item: _Made, cls: Float32, patches: Float32) -> dict[str, bytes]:
        try:
            arrays = {"cls.npy": to_fp16(cls), **self.codec.encode(patches)}
        except ValueError as error:
            raise CacheError(
                f"the teacher's tokens of {item.entry.name} (sid {item.entry.sid}) cannot be stored: {error}",
                "choose another --codec or --teacher-layer, or leave the image out",
            ) from None
        facts = {"sid": item.entry.sid, "path": item.entry.name, "source": item.source, **item.view.params}
        members = {name: npy_bytes(array) for name, array in arrays.items()}
        if item.label is not None:
            members["label.png"] = item.label
        return {**members, "jpg": item.view.jpeg, "json": json_bytes(facts)}

    def _commit(self, shard: ShardWriter, errors: Mapping[str, str], task: _Task) -> None:
        """Make the shard exist, unless a write before failed; runs on the writer's thread."""
        if shard.aborted:
            return
        with _abort_on_error(shard):
            shard.commit(errors)
            self.report.count(shards=1)
        self.built(task)


def run_teacher(teacher: Teacher, pixels: UInt8Array) -> Features:
    """``pixels`` (B, 3, H, W) uint8 to float32 features; ModelError where their shape is not as promised."""
    features = teacher(torch.from_numpy(pixels))
    images, tokens = len(pixels), teacher.grid[0] * teacher.grid[1]
    expected = ((images, teacher.dim), (images, tokens, teacher.dim))
    found = (tuple(features.cls.shape), tuple(features.patches.shape))
    if found != expected:
        raise ModelError(
            f"the teacher gave CLS {found[0]} and patches {found[1]}, not {expected[0]} and {expected[1]}",
            "check --teacher-layer, --image-size and --patch-size",
        )
    return Features(features.cls.float(), features.patches.float())


class _Display:
    """The progress bar and, below it, rates and where the time goes."""

    def __init__(
        self, report: BuildReport, total: int, todo: Sequence[_Task], plan: Plan, quiet: bool
    ) -> None:
        done = total - sum(len(plan.shard(task.shard)) for task in todo)
        self._report, self._started = report, time.monotonic()
        self._bar = console.progress()
        self._task = self._bar.add_task("cache-teacher", total=total, completed=done)
        self._live = None if quiet else Live(console=console.out, get_renderable=self._render)

    def advance(self, samples: int) -> None:
        """Count ``samples`` views as done."""
        self._bar.advance(self._task, samples)

    def _render(self) -> Group:
        report, seconds = self._report, self._report.seconds
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate, speed = report.samples_built / elapsed, report.bytes_written / elapsed / 1e6
        text = (
            f"  {rate:.1f} images/s  {speed:.1f} MB/s"
            f"  read {seconds.read:.0f} s  teacher {seconds.teacher:.0f} s  write {seconds.write:.0f} s"
        )
        return Group(self._bar, Text(text, style="dim"))

    def __enter__(self) -> _Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            if not console.out.is_interactive:
                console.out.print()


@contextlib.contextmanager
def _abort_on_error(shard: ShardWriter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shard.abort()
        raise


@contextlib.contextmanager
def _clock(seconds: Seconds, name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        setattr(seconds, name, getattr(seconds, name) + time.monotonic() - started)
