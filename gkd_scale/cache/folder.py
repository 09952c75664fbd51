"""The folder of a cache that is being built: what is in it, and which shards it lacks.

One process writes it at a time. It holds one spec for ever: another spec is refused, and the error says
what differs.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import gkd_scale
from gkd_scale.cache.codecs.base import STATE, Codec, state_bytes
from gkd_scale.cache.manifest import CHECKSUM, MANIFEST, SHARDS, ShardTable, read_shards
from gkd_scale.cache.parts import PARTS
from gkd_scale.cache.plan import PLAN, ImagePlan, read_plan, read_plan_format, write_plan
from gkd_scale.cache.remote import Outbox
from gkd_scale.cache.shard import index_path, read_info, tar_path
from gkd_scale.cache.spec import FORMAT, SPEC, Spec, read_spec, refuse_other, write_spec
from gkd_scale.errors import CacheError, DamageError, disk_full
from gkd_scale.files import LOCK, TEMPORARY, claim, sha256_file, write_bytes


class ShardTask(NamedTuple):
    """One shard of one view: the unit of work and of resuming."""

    view: int
    shard: int


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache's folder, which is made if it does not exist.

    CacheError if another process writes it, if it holds something else, or if it cannot be written;
    DiskFullError.
    """
    try:
        with claim(folder, CacheError):
            _refuse_foreign(folder)
            yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CacheError(f"{where} cannot be written: {error.strerror}", "choose another --out") from None
        raise (disk_full(error, where) or error) from None


def _refuse_foreign(folder: Path) -> None:
    """CacheError if ``folder`` holds something that is not a cache, neither whole nor begun."""
    ours = {LOCK, SPEC + TEMPORARY, STATE, STATE + TEMPORARY, PARTS}
    if (folder / MANIFEST).exists() or (folder / PLAN).exists():
        return  # a cache that lost its spec
    if not (folder / SPEC).exists() and (foreign := {path.name for path in folder.iterdir()} - ours):
        raise CacheError(
            f"{folder} is not empty and not a teacher cache (it holds {sorted(foreign)[0]})",
            "choose another --out",
        )


def format_of(folder: Path) -> int:
    """The format of the cache in ``folder``, whole or begun; that of new caches if it holds none."""
    with contextlib.suppress(OSError, CacheError, DamageError):
        return read_spec(folder).format
    with contextlib.suppress(Exception):  # no plan either, or a damaged one
        return read_plan_format(folder / PLAN)
    return FORMAT


def prepare(folder: Path, spec: Spec, plan: ImagePlan, codec: Codec) -> ImagePlan:
    """Refuse another spec, clear what a kill left, and write the codec's state, the spec and the plan.

    Returns the plan that reads the file in ``folder``.
    """
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
    remove_temporary(folder)
    if (state := state_bytes(codec)) is not None:
        write_bytes(folder / STATE, state)
    if not (folder / SPEC).exists():
        versions = {"gkd-scale": gkd_scale.__version__}
        versions |= {name: importlib.metadata.version(name) for name in ("pillow", "pyarrow", "numpy")}
        write_spec(spec, folder, versions)
    return write_plan(plan, folder / PLAN)


def remove_temporary(folder: Path) -> None:
    """Remove the files that a process was writing when it died."""
    for stale in [*folder.glob(f"*{TEMPORARY}"), *folder.glob(f"v*/*{TEMPORARY}")]:
        stale.unlink(missing_ok=True)


def refuse_changed(folder: Path, old: Spec, new: Spec, plan: ImagePlan) -> None:
    """CacheError that says what differs if ``folder`` does not hold a cache of ``new`` over ``plan``."""
    refuse_other(folder, old, new, None if old.plan == new.plan else _changed_images(folder, old, plan))


def _changed_images(folder: Path, spec: Spec, plan: ImagePlan) -> str:
    """How the images differ from the plan on disk, in words; '' if they are the same in another order."""
    try:
        old = read_plan(folder / PLAN, spec)
        (old_sids, old_sizes), (new_sids, new_sizes) = old.names(), plan.names()
    except Exception:  # a damaged plan must not hide that the folder changed
        return f"{PLAN} cannot be read to say how"
    _, old_rows, new_rows = np.intersect1d(old_sids, new_sids, assume_unique=True, return_indices=True)
    groups = (
        ("added", plan, np.flatnonzero(~np.isin(new_sids, old_sids))),
        ("removed", old, np.flatnonzero(~np.isin(old_sids, new_sids))),
        ("resized", plan, new_rows[old_sizes[old_rows] != new_sizes[new_rows]]),
    )
    return ", ".join(
        f"{len(rows)} {change} ({source.image(int(rows.min())).name}{' …' * (len(rows) > 1)})"
        for change, source, rows in groups
        if len(rows)
    )


def _shards_are_of(folder: Path, spec: Spec) -> bool:
    """Whether a whole manifest or index in ``folder`` belongs to ``spec``."""
    with contextlib.suppress(Exception):
        return read_shards(folder, spec).spec == spec.hash()
    for path in sorted(folder.glob("v*/shard-*.parquet")):
        with contextlib.suppress(Exception):
            return read_info(path).spec == spec.hash()
    return False


# ------------------------------------------------------------------------------------ what is missing


def missing_shards(folder: Path, spec: Spec, outbox: Outbox | None) -> list[ShardTask]:
    """The shards to build, in order. Their indexes are removed, and with them the manifest."""
    table = None
    with contextlib.suppress(Exception):  # none yet, or damaged: each shard is judged by itself
        table = read_shards(folder, spec)
    tasks = itertools.starmap(ShardTask, spec.view_shards)
    missing = [task for task in tasks if not _is_built(folder, spec, task, table, outbox)]
    if missing:
        for task in missing:
            index_path(folder, *task).unlink(missing_ok=True)
        for name in (MANIFEST, SHARDS, CHECKSUM):
            (folder / name).unlink(missing_ok=True)
    return missing


def _is_built(
    folder: Path, spec: Spec, task: ShardTask, table: ShardTable | None, outbox: Outbox | None
) -> bool:
    """Whether a shard is complete: a whole index of this spec, and a whole tar, here or sent."""
    path, tar = index_path(folder, *task), tar_path(folder, *task)
    try:
        checksum = table.index(*task) if table is not None else None
        info = read_info(path)
        size = tar.stat().st_size if outbox is None or tar.exists() else outbox.sent_bytes(*task)
        return (
            (info.spec, info.view, info.shard) == (spec.hash(), *task)
            and size == info.tar_bytes
            and (checksum is None or sha256_file(path) == checksum)
        )
    except Exception:  # missing or damaged in whatever way: build it again
        return False
