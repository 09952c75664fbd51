"""The frame of a launcher script: parse, join the ranks, run, and end with the right exit code."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gkd_scale import config, console
from gkd_scale.engine import world
from gkd_scale.engine.stop import Stopped
from gkd_scale.errors import GkdError, disk_full
from gkd_scale.memory import keep_freed

C = TypeVar("C")

LOST = re.compile(
    "Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused|remote process exited"
    "|NCCL communicator was aborted|ncclRemoteError"
)
"""What a collective says where another rank's process has ended."""


def main(
    cls: type[C],
    run: Callable[[C, Any, Path], None],
    *,
    argv: Sequence[str],
    bundled: Path,
    prog: str,
    description: str,
    examples: str,
) -> int:
    """``run(config, runtime, bundled)`` on every rank; the process's exit status.

    ``bundled`` is the folder with the DeepSpeed configs. An error that all ranks have in common is
    printed by rank 0 alone; an error of one rank names the rank. A run that stopped because it was asked
    to ends with status 0.
    """
    rank = _rank()
    console.explain_bugs()
    try:
        parsed = config.parse(cls, argv, prog=prog, description=description, examples=examples)
        world.place(os.environ)  # before anything is loaded
        _quiet()
        keep_freed()
        from gkd_scale.engine.runtime import Runtime

        runtime = Runtime.start()
        run(parsed, runtime, bundled)
        runtime.barrier()
        runtime.stop()
    except Stopped as stopped:
        if rank == 0:
            console.out.print(
                f"[yellow]stopped[/] after step {stopped.step} of {stopped.steps}, with its checkpoint "
                "written: resume with the same command"
            )
    except GkdError as error:
        return _report(error, rank)
    except OSError as error:
        full = disk_full(error, error.filename or "output")
        if full is None:
            raise
        return _report(full, rank)
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        console.err.print(f"[bold red]error:[/] rank {rank} lost the others: one of them ended")
        return 1
    except KeyboardInterrupt:
        if rank == 0:
            console.err.print("[yellow]stopped[/]; the same command goes on from the last checkpoint")
        return 130
    return 0


def _rank() -> int:
    """This process's rank; 0, which speaks for all, where the environment gives it none."""
    try:
        return world.place(os.environ).rank
    except GkdError:
        return 0


def leave(status: int) -> NoReturn:
    """End this process now, with everything it printed on its way.

    Gloo's worker threads live until the process does. One that lets go of a tensor while the interpreter
    is being torn down aborts the process ("terminate called without an active exception"), after the run
    is whole on disk; so a launched rank skips the teardown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _report(error: GkdError, rank: int) -> int:
    if getattr(error, "local", False) and rank:
        error.message = f"rank {rank}: {error.message}"
    elif rank:
        return error.exit_code
    console.report(error)
    return error.exit_code


def _quiet() -> None:
    """Keep other libraries' remarks off the user's terminal; their errors stay."""
    warnings.filterwarnings("ignore")
    for name in ("torch", "DeepSpeed", "timm", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
