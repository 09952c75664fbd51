"""Trials as a table for people: the live view and the end's summary show the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from gkd_scale.search import results
from gkd_scale.search.results import Trial

STYLES = {
    results.RUNNING: "cyan",
    results.WAITING: "dim",
    results.DONE: "green",
    results.STOPPED: "yellow",
    results.FAILED: "red",
}


def table(trials: Sequence[Trial], steps: int, best: Trial | None = None, limit: int | None = None) -> Table:
    """One line a trial, those that went furthest first, then by mIoU; a column an option.

    ``best`` is printed bold. Of more than ``limit`` trials, the table has those that run and the first
    of the others.
    """
    grid = Table(box=None, header_style="bold", padding=(0, 1))
    options = list(dict.fromkeys(key for trial in trials for key in trial.config))
    for name, width in (("trial", 5), ("status", 13), ("step", 7), ("mIoU", 5), ("seconds", 7)):
        is_status = name == "status"
        grid.add_column(name, justify="left" if is_status else "right", no_wrap=True, min_width=width)
    for name in options:
        grid.add_column(name.replace(".", ".\n"), no_wrap=True)
    for trial in _select(trials, limit):
        grid.add_row(
            str(trial.number),
            f"[{STYLES.get(trial.status, 'default')}]{trial.status}[/]",
            f"{trial.steps}/{steps}",
            "–" if trial.score is None else f"{trial.score:.2f}",
            f"{trial.seconds:.0f}",
            *(format_value(trial.config.get(key)) for key in options),
            style="bold" if best is not None and trial.name == best.name else None,
        )
    return grid


def _select(trials: Sequence[Trial], limit: int | None) -> list[Trial]:
    order = sorted(trials, key=lambda trial: (-trial.steps, -(trial.score or 0.0), trial.number))
    if limit is None or len(order) <= limit:
        return order
    active = [trial for trial in order if trial.status == results.RUNNING][:limit]
    names = {trial.name for trial in active}
    for trial in order:
        if len(names) < limit:
            names.add(trial.name)
    return [trial for trial in order if trial.name in names]


def format_value(value: Any) -> str:
    """A value for people."""
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
