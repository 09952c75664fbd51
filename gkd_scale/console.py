"""The terminal: one rich console, one progress bar, and the function that turns errors into exit codes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.markup import escape as escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gkd_scale.commands import shell
from gkd_scale.errors import GkdError, refusal


def _mend_streams() -> None:
    """Let closed streams drop output, and let stdout show a '?' for what its encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


_mend_streams()
out = Console(force_jupyter=False, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())
err = Console(force_jupyter=False, stderr=True, highlight=False, emoji=False, soft_wrap=True)


def say(*lines: str) -> None:
    """Print lines as they are: nothing in them is markup."""
    for line in lines:
        out.print(line, markup=False)


def paste(lead: str, *command: object) -> None:
    """Print ``lead`` and a command to paste: quoted, never wrapped, without markup."""
    out.out(f"{lead}{shell(*command)}", highlight=False)


def size(count: float) -> str:
    """Bytes as people read them: ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def run(command: Callable[[], int | None]) -> int:
    """Run ``command`` and return its exit status: 0 done, 1 our fault or damage, 2 the user's mistake.

    Any other exception is a bug: it is raised, and its traceback ends with how to report it.
    """
    explain_bugs()
    try:
        try:
            return command() or 0
        finally:
            sys.stdout.flush()
    except GkdError as error:
        report(error)
        return error.exit_code
    except KeyboardInterrupt:
        err.print("[yellow]stopped[/]; the same command goes on where it stopped")
        return 130
    except BrokenPipeError:
        _drop_output()
        return 0
    except OSError as error:
        user_error = refusal(error)
        if user_error is None:
            raise
        if error.filename is None:
            _drop_output()
        report(user_error)
        return user_error.exit_code


def _drop_output() -> None:
    """Drop what stdout could not take: Python would try to write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain_bugs() -> None:
    """After the traceback of an exception that ends this process, say how to report it."""
    if not _before:
        _before.append(sys.excepthook)
        sys.excepthook = _explain


_before: list[Callable[[type[BaseException], BaseException, TracebackType | None], object]] = []
"""The hook before ours."""


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _before[0](kind, error, trace)
    if issubclass(kind, Exception):
        command = shell("gkd-scale", "doctor", "--json")
        err.print(f"please report the lines above, with what this prints: {command}", markup=False)


def report(error: GkdError) -> None:
    """One error, in red, on stderr."""
    err.print(f"[bold red]error:[/] {escape(_printable(error.message))}")
    if error.hint:
        err.print(f"  → {escape(_printable(error.hint))}")


def _printable(text: str) -> str:
    """``text`` with escape sequences spelled out: file names may hold some."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def progress(*columns: str, disable: bool = False) -> Progress:
    """A progress bar with count, elapsed time and ETA; ``columns`` are extra rich text columns."""
    return Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        *(TextColumn(column) for column in columns),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=out,
        disable=disable,
    )
