"""Real processes without the wait for imports: a server imports torch, DeepSpeed and timm once, and forks.

:func:`run` takes the command lines of ``tests.conftest.run``, and starts no launcher: the ranks are processes
with the environment that a launcher gives. What is said of the launcher, or of a start, is tested with the
other one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gkd_scale.engine.runtime import free_port
from tests.conftest import Result, environment
from tests.ranks import rank_environment

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["torch", "torch._dynamo", "deepspeed", "timm", "gkd_scale.distill.stage1", "gkd_scale.segment.stage2"]
)


def run(command: Sequence[object], cwd: Path, timeout: int = 300) -> Result:
    """As ``conftest.run``: a ``gkd-scale``, ``deepspeed`` or ``python`` command line; all ranks' output."""
    words = [str(part) for part in command]
    program, ranks = Path(words[0]).name, 1
    if program == "deepspeed":
        words, ranks = _strip_launcher(words[1:])
    elif program == "python" or words[0] == sys.executable:
        words = words[1:]
    with tempfile.NamedTemporaryFile() as log:
        code = wait(start(words, cwd, Path(log.name), ranks), timeout)
        return Result(code, log.read().decode())


def start(words: Sequence[str], cwd: Path, log: Path, ranks: int = 1) -> list[BaseProcess]:
    """Ranks that run a script, or ``gkd-scale``, with arguments; what they print is added to ``log``."""
    port, processes = free_port(), []
    for rank in range(ranks):
        env = environment() | rank_environment(rank, ranks, port)
        process = _SERVER.Process(target=_become, args=(list(words), str(cwd), env, str(log)))
        process.start()
        processes.append(process)
    return processes


def wait(processes: Sequence[BaseProcess], timeout: float) -> int:
    """The exit code: the first that is not 0. One that failed has the others 30 s later ended."""
    deadline = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + 30)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return next((process.exitcode for process in processes if process.exitcode), 0)


def spawn(function: Callable[..., None], *args: Any) -> None:
    """``function(rank, *args)`` on two ranks; the traceback of one that fails. torch's server is ours."""
    import torch.multiprocessing

    torch.multiprocessing.start_processes(function, args, nprocs=2, start_method="forkserver")  # type: ignore[no-untyped-call]


def _strip_launcher(words: list[str]) -> tuple[list[str], int]:
    """The script and its arguments, and how many ranks, of the arguments of ``deepspeed``."""
    ranks = 1
    while words[0].startswith("--"):
        if words[0] == "--num_gpus":
            ranks = int(words[1])
        words = words[2:]
    return words, ranks


def _become(words: list[str], cwd: str, env: dict[str, str], log: str) -> None:
    """This process as the command, from its output to its exit code."""
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = words
    if Path(words[0]).name == "gkd-scale":
        from gkd_scale.cli import main

        sys.exit(main(words[1:]))
    runpy.run_path(words[0], run_name="__main__")
