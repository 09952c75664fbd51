"""Runs the groups of checks one after the other; none of them can hang or end the command."""

from __future__ import annotations

import json
import platform
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gkd_scale import __version__, console
from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.hostfile import read_hostfile
from gkd_scale.doctor.line import Line, State
from gkd_scale.doctor.registry import REGISTRY, Group
from gkd_scale.doctor.storage import demand
from gkd_scale.errors import CacheError, GkdError, UserError

_COLOURS: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_END = object()


def doctor(cfg: DoctorConfig) -> int:
    """Check, print, and return 1 if a line fails, else 0. UserError for options that cannot be used."""
    _refuse(cfg)
    groups = [name for name in REGISTRY if name in (cfg.only or REGISTRY)]
    lines: list[tuple[str, Line]] = []
    began = time.time()
    with redirect_stdout(sys.stderr) if cfg.json else nullcontext():  # libraries may print what they like
        for name in groups:
            for line in examine(REGISTRY[name], cfg):
                lines.append((name, line))
                if not cfg.json:
                    _show(name, line)
    if cfg.json:
        print(json.dumps(_report(lines, began), indent=2))
    else:
        states = [line.state for _, line in lines]
        console.out.print(", ".join(f"{states.count(state)} {state}" for state in _COLOURS), markup=False)
    return 1 if any(line.state == "fail" for _, line in lines) else 0


def examine(group: Group, cfg: DoctorConfig) -> Iterator[Line]:
    """The group's lines as they come; an exception, or no end in time, is a last line that fails."""
    lines: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            for line in group.check(cfg):
                lines.put(line)
        except BaseException as error:
            lines.put(error)
        lines.put(_END)

    threading.Thread(target=work, name=group.module, daemon=True).start()
    limit = group.seconds(cfg)
    deadline = time.monotonic() + limit
    while True:
        try:
            item = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            yield Line(
                group.module,
                "fail",
                f"did not end within {limit:.0f} s",
                "something below it hangs: a file system, a driver or a name server; see the lines before",
            )
            return
        if item is _END:
            return
        if isinstance(item, UserError):
            raise item
        yield _failure(group, item) if isinstance(item, BaseException) else item


def _failure(group: Group, error: BaseException) -> Line:
    if isinstance(error, GkdError):
        return Line(group.module, "fail", error.message, error.hint)
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Line(group.module, "fail", reason, "this check could not be made: see what its error says")


def _refuse(cfg: DoctorConfig) -> None:
    """UserError for options that are wrong, before any check runs."""
    if cfg.hostfile is not None:
        read_hostfile(cfg.hostfile)
    demand(cfg)
    from gkd_scale.cache.location import is_url

    if cfg.cache is not None and not is_url(cfg.cache):
        from gkd_scale.cache.spec import read_spec

        try:
            read_spec(Path(cfg.cache))
        except FileNotFoundError:
            raise CacheError(f"there is no cache {cfg.cache}", "check --cache") from None


def _show(group: str, line: Line) -> None:
    text = f"{group:<9} {line.name:<22} {line.value}"
    console.out.print(f"[{_COLOURS[line.state]}]{line.state:<4}[/] {console.escape(text)}")
    if line.todo:
        console.out.print(f"{'':<15}→ {console.escape(line.todo)}")


def _report(lines: list[tuple[str, Line]], began: float) -> dict[str, Any]:
    """What ``--json`` prints."""
    states = [line.state for _, line in lines]
    return {
        "gkd_scale": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 1),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "counts": {state: states.count(state) for state in _COLOURS},
        "lines": [{"group": group, **asdict(line)} for group, line in lines],
    }
