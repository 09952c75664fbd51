"""The disk that runs are written to, and how fast a cache is read, against what a run needs."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.hostfile import read_hostfile
from gkd_scale.doctor.line import Line, State, gib
from gkd_scale.errors import ConfigError, RunError

if TYPE_CHECKING:
    from gkd_scale.cache.reader import Cache

FREE_WANTED, FREE_LEAST = 20 * 2**30, 2**30
WRITE_WANTED = 50e6
"""Bytes a second: a checkpoint of 1 GB in 20 s."""
_SIZE = 64 * 2**20
_BATCH = 8
_MARGIN = 1.2
"""A cache should be read this much faster than a run needs: a loader that is only just as fast is late."""


def check(cfg: DoctorConfig) -> Iterator[Line]:
    """Lines on free space and writing at ``cfg.out``, and on reading ``cfg.cache``."""
    folder = next(path for path in (cfg.out.absolute(), *cfg.out.absolute().parents) if path.is_dir())
    yield _space(folder)
    yield _write_speed(folder)
    if cfg.cache is None:
        yield Line("cache", "ok", "not measured: give --cache CACHE")
    else:
        yield _read_speed(cfg, cfg.cache)


def demand(cfg: DoctorConfig) -> float | None:
    """Images a second that a run needs on all ranks together; None if neither option says it.

    Of ``--run`` that is its median pace in the second half, as it would be without waiting for data. Raises
    RunError for a folder without metrics, ConfigError for both options.
    """
    if cfg.run is None:
        return cfg.needs
    if cfg.needs is not None:
        raise ConfigError("both --run and --needs are given", "give one of them")
    from gkd_scale.engine import runlog

    path = cfg.run / runlog.METRICS
    if not path.is_file():
        raise RunError(f"there is no {path}", "give the --out folder of a stage-1 run")
    try:
        rows = [row for row in runlog.read(path) if "images_per_s" in row]
    except ValueError as error:
        raise RunError(f"{path} cannot be read: {error}", "give another run") from None
    if not rows:
        raise RunError(f"{path} has no step yet", "give a run that has trained")
    later = rows[len(rows) // 2 :]
    return statistics.median(row["images_per_s"] / max(0.01, 1 - row.get("data_wait", 0)) for row in later)


def _space(folder: Path) -> Line:
    free = float(shutil.disk_usage(folder).free)
    text, data = f"{gib(free)} free at {folder}", {"free": free}
    state: State = "fail" if free < FREE_LEAST else "warn" if free < FREE_WANTED else "ok"
    return Line("disk", state, text, "free space, or choose another --out", data)


def _write_speed(folder: Path) -> Line:
    """Write and sync 64 MiB that is not all zero, and remove it."""
    block = os.urandom(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".gkd-scale-doctor-") as file:
            began = time.perf_counter()
            for _ in range(_SIZE // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            pace = _SIZE / (time.perf_counter() - began)
    except OSError as error:
        return Line("writing", "fail", f"{folder}: {error.strerror}", "choose another --out")
    text, data = f"{pace / 1e6:.0f} MB/s at {folder}", {"bytes_per_s": pace}
    state: State = "warn" if pace < WRITE_WANTED else "ok"
    return Line("writing", state, text, "checkpoints take long: use another disk or --save-every", data)


def _read_speed(cfg: DoctorConfig, location: str | Path) -> Line:
    from gkd_scale.cache.loader import CachedSource
    from gkd_scale.cache.reader import Cache

    cache = Cache.open(location)
    source = CachedSource(cache, global_batch=_BATCH, micro_batch=_BATCH, workers=cfg.workers)
    _forget(cache)
    images = 0
    with contextlib.closing(source.batches(0, 2**40)) as batches:  # type: ignore[type-var]
        next(batches)  # opens the first shards
        began = time.perf_counter()
        while (seconds := time.perf_counter() - began) < cfg.seconds:
            next(batches)
            images += _BATCH
    pace, size = images / seconds, _sample_bytes(cache)
    text = f"{pace:.0f} images/s, {pace * size / 1e6:.0f} MB/s with --workers {cfg.workers}"
    data = {"images_per_s": pace, "bytes_per_s": pace * size}
    total = demand(cfg)
    if total is None:
        return Line("cache", "ok", f"{text}; --run or --needs says what is needed", data=data)
    nodes = len(read_hostfile(cfg.hostfile)) if cfg.hostfile else 1
    need = total / nodes
    text = f"{text}; the run needs {need:.0f} images/s{f' on each of {nodes} nodes' if nodes > 1 else ''}"
    data["needed_images_per_s"] = need
    state: State = "fail" if pace < need else "warn" if pace < _MARGIN * need else "ok"
    return Line("cache", state, text, source.times.cause(), data)


def _forget(cache: Cache) -> None:
    """Ask the system to drop the cache's files from memory, so that the disk is measured."""
    for path in sorted(cache.path.rglob("*.tar"))[:10_000]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _sample_bytes(cache: Cache) -> float:
    """Bytes that one sample takes on disk, on average over the tars that are here."""
    tars = list(cache.path.rglob("*.tar"))
    samples = cache.num_samples / len(cache.shard_sizes)
    return sum(path.stat().st_size for path in tars) / max(1, len(tars)) / samples
