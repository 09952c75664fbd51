"""Commands as a user would type them, run one after the other: what the demo and the benchmarks are made of.

Each is a process of its own; it is shown, its output goes to a log, and where it fails the log's end is.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_scale import console
from gkd_scale.engine.runtime import free_port
from gkd_scale.errors import ConfigError, GkdError


@dataclass(frozen=True)
class Step:
    """One command: what it is for, and its arguments."""

    title: str
    command: list[str]


def run_all(steps: Sequence[Step], logs: Path) -> list[float]:
    """Run the steps in order, each with a log of its own; the seconds that each took."""
    return [
        run_step(step, f"{number}/{len(steps)}", logs / f"{number:02d}-{_slug(step.title)}.log")
        for number, step in enumerate(steps, 1)
    ]


def run_step(step: Step, place: str, log: Path) -> float:
    """Run a command with its output in ``log``; its seconds. GkdError with the log's end if it fails.

    ``place`` is shown before the title, for example ``3/12``.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    console.out.print(f"[bold]{place} {console.escape(step.title)}[/]")
    console.paste("  $ ", *step.command)
    began = time.monotonic()
    with open(log, "wb") as file, console.out.status(console.escape(f"{step.title}; output in {log}")):
        status = subprocess.run(
            _arguments(step.command), stdout=file, stderr=subprocess.STDOUT, env=_environment()
        )
    if status.returncode:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        console.err.print("\n".join(tail), markup=False)
        raise GkdError(f"'{step.title}' failed with exit code {status.returncode}", f"see {log}")
    seconds = time.monotonic() - began
    console.out.print(f"  {seconds:.0f} s")
    return seconds


def _slug(title: str) -> str:
    return title.split(":")[0].replace(" ", "-").replace(",", "")


def _arguments(command: list[str]) -> list[str]:
    """The command with this environment's own programs first, and a free port for a launcher."""
    own = Path(sys.executable).parent / command[0]
    program = str(own) if own.is_file() else shutil.which(command[0])
    if program is None:
        raise ConfigError(
            f"there is no program '{command[0]}'", f"install it, or correct: {shlex.join(command)}"
        )
    port = ["--master_port", str(free_port())] if command[0] == "deepspeed" else []
    return [program, *port, *command[1:]]


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "COLUMNS": "120"}
