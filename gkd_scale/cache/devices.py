"""Where shards are built: on one device, on several of this machine, or on a Ray cluster.

A shard's bytes depend on its images alone, so it does not matter which device builds it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

from gkd_scale.cache.cluster import Load, ShardResult, distribute
from gkd_scale.cache.folder import ShardTask, remove_temporary
from gkd_scale.cache.progress import BuildReport
from gkd_scale.cache.runner import BuildJob, Events, ShardBuilder
from gkd_scale.types import Teacher


def build_shards(
    job: BuildJob, tasks: Sequence[ShardTask], teacher: Teacher, load: Load | None, events: Events
) -> None:
    """Build the shards of ``tasks``. ``load(device)`` makes the teachers of the other devices."""
    devices = job.cfg.devices
    if job.cfg.ray is not None and load is not None:
        _on_cluster(job, tasks, load, job.cfg.ray, events)
    elif len(devices) == 1 or load is None:
        ShardBuilder(job, teacher, devices[0], events).run(tasks)
    else:
        _on_several(job, tasks, [teacher, *map(load, devices[1:])], events)


class _StoppedError(Exception):
    """Another device failed: this one stops too."""


def _on_several(
    job: BuildJob, tasks: Sequence[ShardTask], teachers: Sequence[Teacher], events: Events
) -> None:
    """One builder a device, each in a thread; if one fails the others stop, and its error is raised."""
    failure = threading.Event()

    def advance(samples: int) -> None:
        if failure.is_set():
            raise _StoppedError
        events.advance(samples)

    hooks = events._replace(advance=advance)
    with ThreadPoolExecutor(len(teachers), thread_name_prefix="device") as pool:
        runs = [
            pool.submit(ShardBuilder(job, teacher, device, hooks).run, tasks[rank :: len(teachers)])
            for rank, (teacher, device) in enumerate(zip(teachers, job.cfg.devices, strict=True))
        ]
        errors = []
        for run in as_completed(runs):
            if (error := run.exception()) is not None:
                failure.set()
                errors.append(error)
    if errors:
        raise errors[0]


def _on_cluster(job: BuildJob, tasks: Sequence[ShardTask], load: Load, address: str, events: Events) -> None:
    def on_result(task: ShardTask, result: ShardResult) -> None:
        events.report.count(shards=1, samples=result.samples, size=result.bytes)
        events.advance(job.plan.size_of(task.shard))
        events.on_commit(task)

    distribute(tasks, partial(_one_by_one, job), load, address, on_result)
    remove_temporary(job.cfg.out)  # of workers that died


def _one_by_one(job: BuildJob, teacher: Teacher, device: str) -> Callable[[ShardTask], ShardResult]:
    """A function that builds one shard with ``teacher``; runs in a worker of the cluster."""

    def shard(task: ShardTask) -> ShardResult:
        report = BuildReport(job.cfg.out, 0, 0, 0)
        silent = Events(report, lambda _: None, lambda _: None)
        ShardBuilder(job, teacher, device, silent).run([ShardTask(*task)])
        return ShardResult(report.samples_built, report.bytes_written)

    return shard
