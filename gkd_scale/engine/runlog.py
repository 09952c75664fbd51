"""Reports a run's metrics: a live line for people, JSONL for scripts, loggers for both. Rank 0 only."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gkd_scale import console, files
from gkd_scale.engine import loggers
from gkd_scale.engine.loggers import RunFacts, Status
from gkd_scale.engine.loggers.follower import Follower
from gkd_scale.engine.stop import Stopped

METRICS = "metrics.jsonl"


class RunLog:
    """One live display for a pass, and ``metrics.jsonl`` and loggers for each of its runs.

    ``metrics.jsonl`` has one object a step; a number that is not finite is null. A run that resumes from
    ``start`` removes later rows of the interrupted one, so each step appears once. ``names`` are of
    :data:`loggers.LOGGERS`; a failure of a logger is one remark and does not end the run. Use it as a context
    manager. With ``enabled`` false (on ranks other than 0) it does nothing.
    """

    def __init__(
        self,
        runs: Sequence[RunFacts],
        start: int,
        steps: int,
        enabled: bool = True,
        names: Sequence[str] = loggers.DEFAULT,
    ) -> None:
        self.start, self.steps, self.enabled = start, steps, enabled
        self._titles = [run.title for run in runs]
        self._progress = console.progress("{task.fields[text]}")
        self._files = [_Files(run, start, names, self._say) for run in runs] if enabled else []
        self._tasks = [
            self._progress.add_task(title, total=steps, completed=start, text="") for title in self._titles
        ]
        self._live = console.out.is_terminal
        self._print_every = max(1, steps // 20)
        self._began = time.monotonic()

    def __enter__(self) -> RunLog:
        if self.enabled and self._live:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Flush and close everything."""
        self._progress.stop()
        status: Status = "finished"
        if kind is not None:
            status = "stopped" if issubclass(kind, (Stopped, KeyboardInterrupt)) else "failed"
        for file in self._files:
            file.close(status)

    def finish(self, finals: Sequence[Mapping[str, float]]) -> None:
        """Set each run's final numbers; its loggers get them with those of the last step."""
        for file, final in zip(self._files, finals, strict=True):
            file.final = final

    def step(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Record the metrics of every run after optimizer step number ``step`` (from 1)."""
        if not self.enabled:
            return
        for title, file, task, row in zip(self._titles, self._files, self._tasks, rows, strict=True):
            file.write(step, row)
            text = _one_line(row)
            self._progress.update(task, completed=step, text=text)
            if not self._live and (step % self._print_every == 0 or step == self.steps):
                eta = (time.monotonic() - self._began) / max(1, step - self.start) * (self.steps - step)
                prefix = f"{title}: " if len(rows) > 1 else ""
                console.out.print(f"{prefix}step {step}/{self.steps}  {text}  ETA {eta:.0f}s", markup=False)

    def note(self, text: str) -> None:
        """Print a line above the live display."""
        if self.enabled:
            console.out.print(text)

    def _say(self, text: str) -> None:
        self.note(console.escape(text))


class _Files:
    """``metrics.jsonl`` and the loggers of one run."""

    def __init__(self, run: RunFacts, start: int, names: Sequence[str], say: Callable[[str], None]) -> None:
        run.out.mkdir(parents=True, exist_ok=True)
        past = _truncate(run.out / METRICS, start)
        self.final: Mapping[str, float] = {}
        self._latest = _numbers(past[-1]) if past else {}
        self._file = open(run.out / METRICS, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        rows = [(int(row["step"]), _numbers(row)) for row in past]
        self._followers = [
            Follower(name, partial(loggers.module(name).start, run, start, say), rows, say) for name in names
        ]

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._file.write(_line({"step": step, **metrics}))
        self._file.flush()
        self._latest = _numbers(metrics)
        for follower in self._followers:
            follower.put(step, self._latest)

    def close(self, status: Status) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        for follower in self._followers:
            follower.close(status, {**self._latest, **self.final})


def _line(row: Mapping[str, Any]) -> str:
    """A row as JSON, which has no infinities: fp16 skips a step whose gradient norm is one."""
    return json.dumps({name: value if _is_finite(value) else None for name, value in row.items()}) + "\n"


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, without the step."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
    return {name: value for name, value in numbers.items() if name != "step" and _is_finite(value)}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without a last line that a kill cut short."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _truncate(path: Path, start: int) -> list[dict[str, Any]]:
    """Remove the rows after step ``start`` from the file. Returns the other rows."""
    if not path.exists():
        return []
    rows = [row for row in read(path) if row["step"] <= start]
    files.write_text(path, "".join(map(_line, rows)))
    return rows


def _one_line(metrics: dict[str, Any]) -> str:
    parts = []
    for name, form in (("loss", ".4f"), ("lr", ".1e"), ("images_per_s", ".0f"), ("data_wait", ".0%")):
        if name in metrics:
            label = {"images_per_s": "img/s", "data_wait": "wait"}.get(name, name)
            parts.append(f"{label} {metrics[name]:{form}}")
    return " ".join(parts)
