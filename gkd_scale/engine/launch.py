"""What every launcher script does: parse, join the ranks, run, and end with the right exit status."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from gkd_scale import config, console
from gkd_scale.engine import world
from gkd_scale.engine.stop import Stopped
from gkd_scale.errors import GkdError, refusal
from gkd_scale.memory import collector_paused, keep_freed

C = TypeVar("C")

LOST = re.compile(
    "Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused|remote process exited"
    "|NCCL communicator was aborted|ncclRemoteError"
)
"""Matches the message of a collective that failed because the process of another rank has ended."""
LATE = re.compile("Timed out waiting|[Tt]imeout after waiting|Watchdog caught collective operation timeout")
"""Matches the message of a collective that another rank did not join in time."""


def main(
    cls: type[C],
    run: Callable[[C, Any, Path], None],
    *,
    argv: Sequence[str],
    launchers: Path,
    prog: str,
    description: str,
    examples: str,
    ranks: Callable[[C], int | None] = lambda _: None,
) -> int:
    """Call ``run(config, runtime, launchers)`` on every rank. Returns the process's exit status.

    ``launchers`` is the folder with the DeepSpeed configs. ``ranks(config)`` is how many ranks one process
    plans for (:meth:`Runtime.start`). Rank 0 prints an error that all ranks have; a rank
    prints an error that it alone has, with its number. A run that stopped on request ends with status 0.
    """
    console.explain_bugs()
    try:
        cfg = config.parse(cls, argv, prog=prog, description=description, examples=examples)
        world.place(os.environ)  # an error of the environment comes before the slow imports
        _quiet()
        keep_freed()
        with collector_paused(freeze=True):
            from gkd_scale.engine.runtime import Runtime

            runtime = Runtime.start(ranks(cfg))
        run(cfg, runtime, launchers)
        runtime.barrier()
        runtime.stop()
    except (Stopped, GkdError, OSError, RuntimeError, KeyboardInterrupt) as error:
        status = _status(error, _rank())
        if status is None:
            raise
        return status
    return 0


def start(cls: type[C], run: Callable[[C, Any, Path], None], script: str, **options: Any) -> NoReturn:
    """What the launcher ``script`` is: :func:`main` with the process's flags, then the process's end."""
    path = Path(script)
    leave(main(cls, run, argv=sys.argv[1:], launchers=path.parent, prog=path.name, **options))


def _status(error: BaseException, rank: int) -> int | None:
    """Print what ended a run, and return the exit status; None for a bug, which keeps its traceback."""
    if isinstance(error, OSError):
        error = refusal(error) or error
    if isinstance(error, GkdError):
        return _report(error, rank)
    if isinstance(error, Stopped):
        if rank == 0:
            console.out.print(
                f"[yellow]stopped[/] after step {error.step} of {error.steps}, with its checkpoint "
                "written: resume with the same command"
            )
        return 0
    if isinstance(error, KeyboardInterrupt):
        if rank == 0:
            console.err.print("[yellow]stopped[/]; the same command goes on from the last checkpoint")
        return 130
    if isinstance(error, RuntimeError) and LOST.search(str(error)):
        console.err.print(f"[bold red]error:[/] rank {rank} lost the others: one of them ended")
        return 1
    if isinstance(error, RuntimeError) and LATE.search(str(error)):
        console.err.print(
            f"[bold red]error:[/] rank {rank} waited in vain for the others: one of them is late or hangs "
            "(--timeout-minutes)"
        )
        return 1
    return None


def _rank() -> int:
    """This process's rank, or 0, which reports errors, if the environment gives it none."""
    try:
        return world.place(os.environ).rank
    except GkdError:
        return 0


def leave(status: int) -> NoReturn:
    """Flush the output and end this process at once.

    Gloo's worker threads live as long as the process. If one frees a tensor while the interpreter shuts down,
    it aborts the process ("terminate called without an active exception"), although the run is whole on
    disk. So a launched rank does not shut the interpreter down.
    """
    with suppress(OSError):  # a full disk, a reader that has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _report(error: GkdError, rank: int) -> int:
    if rank == (error.on_rank or 0):
        if rank:
            error.message = f"rank {rank}: {error.message}"
        console.report(error)
    return error.exit_code


def _quiet() -> None:
    """Keep the remarks of other libraries off the terminal; show their errors."""
    warnings.filterwarnings("ignore")
    for name in ("torch", "DeepSpeed", "timm", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
