"""Cores, memory, shared memory, limits: what the operating system gives a process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.line import Line, State, gib

SHM = Path("/dev/shm")
SHM_WANTED, SHM_LEAST = 2**30, 64 * 2**20
"""NCCL and gloo pass data between a node's ranks there."""
FILES_WANTED, FILES_LEAST = 4096, 512
"""A cache keeps 64 shards and their indexes open; sockets of ranks, threads and libraries come on top."""
MEMORY_WANTED = 4 * 2**30


def check(cfg: DoctorConfig) -> Iterator[Line]:  # noqa: ARG001
    """Lines on cores, memory, /dev/shm and the open-file limit."""
    yield _cores()
    yield _memory()
    yield _shm()
    yield _files()


def _cores() -> Line:
    cores, (load, *_) = len(os.sched_getaffinity(0)), os.getloadavg()
    text = f"{cores} for this process, load {load:.1f}"
    data = {"cores": float(cores), "load": load}
    state: State = "warn" if load > 1.2 * (os.cpu_count() or cores) else "ok"
    return Line("cores", state, text, "other processes use them: speeds measured here are low", data)


def _memory() -> Line:
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {row[0].rstrip(":"): 1024 * float(row[1]) for row in rows}
    free, total = sizes["MemAvailable"], sizes["MemTotal"]
    text, data = f"{gib(free)} free of {gib(total)}", {"free": free, "total": total}
    state: State = "warn" if free < MEMORY_WANTED else "ok"
    return Line("memory", state, text, "close other programs, or take a larger machine", data)


def _shm() -> Line:
    name, todo = str(SHM), "give the container more: docker run --shm-size=8g, or --ipc=host"
    try:
        stats = os.statvfs(SHM)
    except OSError as error:
        return Line(name, "fail", f"cannot be used: {error.strerror}", todo)
    free, total = float(stats.f_bavail * stats.f_frsize), float(stats.f_blocks * stats.f_frsize)
    text, data = f"{gib(free)} free of {gib(total)}", {"free": free, "total": total}
    if not os.access(SHM, os.W_OK):
        return Line(name, "fail", f"{text}, not writable", "its mode must be 1777", data)
    state: State = "fail" if free < SHM_LEAST else "warn" if free < SHM_WANTED else "ok"
    hint = "remove what ended processes left there" if total >= SHM_WANTED else todo
    return Line(name, state, text, hint, data)


def _files() -> Line:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    text = "unlimited" if unlimited else f"{soft} (at most {'unlimited' if hard < 0 else hard})"
    data = {"soft": float(soft), "hard": float(hard)}
    enough = unlimited or soft >= FILES_WANTED
    state: State = "ok" if enough else "fail" if soft < FILES_LEAST else "warn"
    note = "" if hard < 0 or hard >= FILES_WANTED else "; the hard limit is in /etc/security/limits.conf"
    return Line("open files", state, text, f"ulimit -n 65536 before the command{note}", data)
