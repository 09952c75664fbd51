"""A search while it runs: a live table for people, and ``trials.parquet`` for programs.

A Tune callback. On a terminal it is one table that stays in place; into a file or pipe it writes a line for
each event.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from ray import tune
from ray.exceptions import RayTaskError
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gkd_scale import console, files
from gkd_scale.search import results
from gkd_scale.search.table import STYLES, format_value, table
from gkd_scale.search.trial import ENDED

WRITE_EVERY = 1.0
"""Seconds between rewritings of the table, on disk and on the terminal."""
LIMIT = 15
"""Most trials in the live table."""
CAUSES = 3
"""Most failures below it: the newest."""


class Board(tune.Callback):
    """Follows all trials. Tune pickles callbacks with its state; this one starts anew from the table."""

    current: ClassVar[Board | None] = None
    """The one that Tune uses: after a restart it is not the one that was handed to Tune."""

    def __init__(self, out: Path, steps: int, count: int) -> None:
        self.out, self.steps, self.count = out, steps, count
        self.results = results.Results(out)
        self.began = self.last_write = time.monotonic()
        self.fresh = 0
        self.live: Live | None = None
        self.states: dict[str, tuple[str, dict[str, Any]]] = {}
        self.finished: set[str] = set()
        self.numbers = {trial.name: trial.number for trial in self.results.trials()}

    def __reduce__(self) -> Any:
        return Board, (self.out, self.steps, self.count)

    # ------------------------------------------------------------------------------ Tune's events

    def setup(self, *_: Any, **__: Any) -> None:
        Board.current = self
        self.began = time.monotonic()
        if console.out.is_terminal:
            self.live = Live(self.render(), console=console.out, refresh_per_second=2)
            self.live.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._line(f"{self._name(trial)} starts: {_settings(trial.config)}")

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        repeated = (trial.trial_id, result["step"]) in self.results.rows
        before = max((step for name, step in self.results.rows if name == trial.trial_id), default=0)
        self.results.add(trial.trial_id, trial.config, {**result, "number": self._number(trial.trial_id)})
        if not repeated and "failed" not in result:
            self.fresh += max(0, result["step"] - before)
            self._line(f"{self._name(trial)} step {result['step']}/{self.steps}: mIoU {result['miou']:.2f}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._finish(trial, "TERMINATED")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._line(f"{self._name(trial)} was lost and goes on elsewhere: {cause(trial, 'ERROR')}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:  # noqa: ARG002
        self._finish(trial, "ERROR")

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:  # noqa: ARG002
        self._follow(trials)
        if time.monotonic() - self.last_write >= WRITE_EVERY:
            self._write(trials)
            if self.live:
                self.live.update(self.render())

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        self._follow(trials)
        self._write(trials)
        self.close()

    def close(self) -> None:
        """Write the table and leave the terminal as it was; safe to call twice."""
        self.results.write()
        if self.live:
            self.live.update(self.render())
            self.live.stop()
            self.live = None

    # -------------------------------------------------------------------------------------- inside

    def _follow(self, trials: list[Any]) -> None:
        self.states = {
            trial.trial_id: (status(trial, trial.status, self.steps), trial.config) for trial in trials
        }

    def _number(self, name: str) -> int:
        """Trials are numbered in the order they start in."""
        return self.numbers.setdefault(name, len(self.numbers) + 1)

    def _name(self, trial: Any) -> str:
        return f"trial {self._number(trial.trial_id)}"

    def _finish(self, trial: Any, state: str) -> None:
        self.finished.add(trial.trial_id)
        outcome, reason = self._mark(trial, state)
        if outcome in (results.DONE, results.STOPPED):
            files.write_text(self.out / "trials" / trial.trial_id / ENDED, f"{outcome}\n")
        self._line(f"{self._name(trial)} {outcome}" + (f": {reason}" if reason else ""))

    def _mark(self, trial: Any, state: str) -> tuple[str, str | None]:
        """Put how a trial in ``state`` stands, and why it failed, into the results; both are returned."""
        outcome, reason = status(trial, state, self.steps), cause(trial, state)
        self.results.mark(trial.trial_id, self._number(trial.trial_id), outcome, trial.config, reason)
        return outcome, reason

    def _write(self, trials: list[Any]) -> None:
        for trial in trials:
            self._mark(trial, trial.status)
        self.results.write()
        self.last_write = time.monotonic()

    def _line(self, text: str) -> None:
        if not self.live:
            console.out.print(text, markup=False)

    def render(self) -> Group:
        """Where the search stands, its trials, and why some failed."""
        trials = self.trials()
        best = results.best(trials, self.steps)
        failures = [f"trial {item.number} failed: {item.cause}" for item in trials if item.cause]
        counts, rates = self.headlines(trials, best)
        head = Table.grid(padding=(0, 1))
        head.add_row(ProgressBar(self.count, self._count_ended(trials), width=20), counts)
        return Group(
            head,
            Text(rates),
            table(trials, self.steps, best, LIMIT),
            *(Text(item, style="red", overflow="ellipsis", no_wrap=True) for item in failures[-CAUSES:]),
        )

    def trials(self) -> list[results.Trial]:
        """All trials as they stand, also those that have not reported."""
        by_name = {trial.name: trial for trial in self.results.trials()}
        for name, (outcome, params) in self.states.items():
            if name in by_name:
                by_name[name].status = outcome
            else:
                by_name[name] = results.Trial(name, self._number(name), outcome, None, params, [], 0.0)
        return list(by_name.values())

    def _count_ended(self, trials: list[results.Trial]) -> int:
        return sum(trial.status not in _OPEN for trial in trials)

    def headlines(self, trials: list[results.Trial], best: results.Trial | None) -> tuple[str, str]:
        """How trials stand; and the best so far, trials a minute, and the time that is left at most."""
        counts = {kind: sum(trial.status == kind for trial in trials) for kind in STYLES}
        first = [f"{self._count_ended(trials)} of {self.count} trials ended"]
        first += [f"{count} {kind}" for kind, count in counts.items() if count]
        second = []
        if best:
            second.append(f"best mIoU {best.score:.2f} (trial {best.number}, step {best.steps})")
        minutes = (time.monotonic() - self.began) / 60
        if self.fresh and minutes > 0:
            missing = sum(self.steps - trial.steps for trial in trials if trial.status in _OPEN)
            missing += self.steps * max(0, self.count - len(trials))
            second.append(f"{len(self.finished) / minutes:.1f} trials/min")
            second.append(f"at most {missing * minutes / self.fresh:.1f} min left")
        return " · ".join(first), " · ".join(second)


_OPEN = (results.RUNNING, results.WAITING)


def status(trial: Any, state: str, steps: int) -> str:
    """How a Tune trial in ``state`` stands, in our words."""
    last = trial.last_result or {}
    if state == "ERROR" or "failed" in last:
        return results.FAILED
    if state == "TERMINATED":
        return results.DONE if last.get("step", 0) >= steps else results.STOPPED
    return results.RUNNING if state == "RUNNING" else results.WAITING


def cause(trial: Any, state: str) -> str | None:
    """Why a trial failed, in one line."""
    if "failed" in (trial.last_result or {}):
        return str(trial.last_result["failed"])
    if state != "ERROR":
        return None
    error = trial.get_error()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error is None or not lines:
        return "its process was lost"
    return lines[-1 if isinstance(error, RayTaskError) else 0][:300]  # a remote traceback ends with its error


def _settings(config: dict[str, Any]) -> str:
    return "  ".join(f"{key}={format_value(value)}" for key, value in config.items())
