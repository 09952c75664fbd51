"""The results of a search: a row for each report in ``trials.parquet``, which is whole at any time.

The table is rewritten (under a temporary name, then renamed) as reports come, so a kill loses no report that
was shown. A search that goes on starts from it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gkd_scale import files
from gkd_scale.errors import DamageError

METRIC = "miou"
"""The objective: mean over the selection domains of the probe's mIoU, in percent."""
FILE = "trials.parquet"
RUNNING, DONE, STOPPED, FAILED, WAITING = "running", "done", "stopped early", "failed", "waiting"
_LEFT_OUT = (
    "config",
    "timestamp",
    "date",
    "pid",
    "hostname",
    "node_ip",
    "trial_id",
    "done",
    "experiment_tag",
    "report",
)


@dataclass
class Trial:
    """A trial as its rows tell it. ``curve`` is (step, mIoU in percent) in order."""

    name: str
    number: int
    status: str
    cause: str | None
    config: dict[str, Any]
    curve: list[tuple[int, float]]
    seconds: float

    @property
    def steps(self) -> int:
        return self.curve[-1][0] if self.curve else 0

    @property
    def score(self) -> float | None:
        """The newest mIoU; None for a failed trial or before the first report."""
        return self.curve[-1][1] if self.curve and self.status != FAILED else None


class Results:
    """Rows by (trial, step)."""

    def __init__(self, out: Path) -> None:
        self.path = out / FILE
        self.rows: dict[tuple[str, int], dict[str, Any]] = {}
        if self.path.exists():
            try:
                rows = pq.read_table(self.path).to_pylist()
            except (OSError, pa.ArrowException) as error:
                reason = " ".join(str(error).split())[:160]
                raise DamageError(
                    f"{self.path} is damaged: {reason}", "remove it: the search goes on without what it held"
                ) from None
            for row in rows:
                self.rows[row["trial"], row["step"]] = {k: v for k, v in row.items() if v is not None}

    def add(self, trial: str, config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take in a report of ``trial``."""
        fields = {
            key: value
            for key, value in result.items()
            if isinstance(value, (int, float, str))
            and key not in _LEFT_OUT
            and not key.startswith(("time_", "iterations_", "training_", "config"))
        }
        if "failed" in fields:
            fields["cause"] = fields.pop("failed")
            fields.pop(METRIC, None)
        params = {f"config.{key}": value for key, value in config.items()}
        row = {"trial": trial, "status": RUNNING, "time": round(time.time(), 1), **fields, **params}
        self.rows[trial, int(row["step"])] = {**self.rows.get((trial, int(row["step"])), {}), **row}

    def mark(
        self, trial: str, number: int, status: str, config: Mapping[str, Any], cause: str | None = None
    ) -> None:
        """Set the status of a trial. A failed one that never reported gets a row of its own."""
        rows = [row for (name, _), row in self.rows.items() if name == trial]
        if not rows and status == FAILED:
            self.add(trial, config, {"step": 0, "number": number})
            rows = [self.rows[trial, 0]]
        for row in rows:
            row["status"] = status
        if rows and cause:
            rows[-1]["cause"] = cause

    def write(self) -> None:
        """Replace ``trials.parquet``."""
        rows = [self.rows[key] for key in sorted(self.rows)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = {name: _column([row.get(name) for row in rows]) for name in names}
        if columns:
            with files.atomic(self.path) as file:
                pq.write_table(pa.table(columns), file)

    def trials(self) -> list[Trial]:
        """All trials that reported, by name."""
        by_trial: dict[str, list[dict[str, Any]]] = {}
        for key in sorted(self.rows):
            by_trial.setdefault(key[0], []).append(self.rows[key])
        return [_trial(name, rows) for name, rows in by_trial.items()]


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: a column of mixed ones (a choice of 1 and 'auto') is text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        return [float(v) if v is not None and kinds == {int, float} else v for v in values]
    return [None if value is None else str(value) for value in values]


def _trial(name: str, rows: list[dict[str, Any]]) -> Trial:
    last = rows[-1]
    config = {key.removeprefix("config."): value for key, value in last.items() if key.startswith("config.")}
    curve = [(row["step"], row[METRIC]) for row in rows if row.get(METRIC) is not None]
    cause = next((row["cause"] for row in rows if row.get("cause")), None)
    seconds = float(last.get("seconds") or 0.0)
    return Trial(name, int(last["number"]), last["status"], cause, config, curve, seconds)


def best(trials: Iterable[Trial], steps: int) -> Trial | None:
    """The trial of the highest mIoU among those that went furthest (all ``steps``, if any did)."""
    candidates = [trial for trial in trials if trial.score is not None]
    most = max((min(trial.steps, steps) for trial in candidates), default=0)
    return max((t for t in candidates if t.steps >= most), key=lambda t: t.score or 0.0, default=None)
