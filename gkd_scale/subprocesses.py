"""Run commands as a user would type them, one after the other: the demo and the benchmarks are such lists.

Each command runs in a process of its own. The terminal shows the command; its output goes to a log; if it
fails, the terminal shows the end of the log.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_scale import console
from gkd_scale.engine.runtime import free_port
from gkd_scale.errors import ConfigError, GkdError


@dataclass(frozen=True)
class Step:
    """One command: a title that says what it does, and its arguments."""

    title: str
    command: list[str]


def run_all(steps: Sequence[Step], logs: Path) -> list[float]:
    """Run ``steps`` in order, each with a log of its own in ``logs``. Returns the seconds of each."""
    return [
        run_step(step, f"{number}/{len(steps)}", logs / f"{number:02d}-{_slug(step.title)}.log")
        for number, step in enumerate(steps, 1)
    ]


def run_step(step: Step, place: str, log: Path) -> float:
    """Run a command with its output in ``log``. Returns its seconds; raises GkdError if it fails.

    ``place`` stands before the title on the terminal, for example ``3/12``.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    console.out.print(f"[bold]{place} {console.escape(step.title)}[/]")
    console.paste("  $ ", *step.command)
    began = time.monotonic()
    with open(log, "wb") as file, console.out.status(console.escape(f"{step.title}; output in {log}")):
        status = subprocess.run(
            _executable(step.command), stdout=file, stderr=subprocess.STDOUT, env=_environment()
        )
    if status.returncode:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        console.err.print("\n".join(tail), markup=False)
        raise GkdError(f"'{step.title}' failed with exit code {status.returncode}", f"see {log}")
    seconds = time.monotonic() - began
    console.out.print(f"  {seconds:.0f} s")
    return seconds


def require_launchers(folder: Path) -> None:
    """ConfigError unless ``folder`` has the launchers of both stages."""
    for script in ("stage1.py", "stage2.py"):
        if not (folder / script).is_file():
            raise ConfigError(
                f"there is no {folder / script}", "run from a checkout, or give --launchers FOLDER"
            )


def launch(script: Path, ds_config: str) -> list[str]:
    """The beginning of a launcher's command."""
    return ["deepspeed", str(script), "--ds-config", ds_config]


def repeat(flag: str, values: Iterable[str]) -> list[str]:
    """``flag`` before each of its values."""
    return [part for value in values for part in (flag, value)]


def data_flags(domains: Mapping[str, str]) -> list[str]:
    """Domains, ADAPTER:PATH by name, as flags of ``gkd-scale evaluate`` and ``gkd-scale report``."""
    return repeat("--data", (f"{name}={ref}" for name, ref in domains.items()))


def _slug(title: str) -> str:
    return title.split(":")[0].replace(" ", "-").replace(",", "")


def _executable(arguments: list[str]) -> list[str]:
    """``arguments`` with the program's path (this environment's first) and a free port for a launcher."""
    name, *rest = arguments
    beside = Path(sys.executable).parent / name
    program = str(beside) if beside.is_file() else shutil.which(name)
    if program is None:
        raise ConfigError(f"there is no program '{name}'", f"install it, or correct: {shlex.join(arguments)}")
    port = ["--master_port", str(free_port())] if name == "deepspeed" else []
    return [program, *port, *rest]


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "COLUMNS": "120"}
