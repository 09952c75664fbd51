"""What a run says: a live line for people, JSONL for scripts, TensorBoard for both. Rank 0 only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd_scale import console, files

METRICS = "metrics.jsonl"


class RunLog:
    """What the runs of a pass say, each a title and a folder: one live display, and files for each run.

    ``metrics.jsonl`` has one object a step; TensorBoard's files are under ``tensorboard/``. A run that
    goes on from ``start`` drops what an interrupted one wrote after it, so every step is there once.
    A context manager; with ``enabled`` false (ranks other than 0) it does nothing.
    """

    def __init__(
        self, runs: Sequence[tuple[str, Path]], start: int, steps: int, enabled: bool = True
    ) -> None:
        self.start, self.steps, self.enabled = start, steps, enabled
        self._titles = [title for title, _ in runs]
        self._files = [_Files(out, start) for _, out in runs] if enabled else []
        self._progress = console.progress("{task.fields[text]}")
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

    def __exit__(self, *_: object) -> None:
        """Flush and close everything."""
        self._progress.stop()
        for each in self._files:
            each.close()

    def step(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Record each run's metrics of optimizer step number ``step`` (from 1)."""
        if not self.enabled:
            return
        for title, file, task, row in zip(self._titles, self._files, self._tasks, rows, strict=True):
            file.write(step, row)
            text = _one_line(row)
            self._progress.update(task, completed=step, text=text)
            if not self._live and (step % self._print_every == 0 or step == self.steps):
                left = (time.monotonic() - self._began) / max(1, step - self.start) * (self.steps - step)
                who = f"{title}: " if len(rows) > 1 else ""
                console.out.print(f"{who}step {step}/{self.steps}  {text}  ETA {left:.0f}s", markup=False)

    def note(self, text: str) -> None:
        """A line for people, above the live display."""
        if self.enabled:
            console.out.print(text)


class _Files:
    """``metrics.jsonl`` and TensorBoard of one run."""

    def __init__(self, out: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        out.mkdir(parents=True, exist_ok=True)
        _truncate(out / METRICS, start)
        self._file = open(out / METRICS, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line cut short by a kill is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _truncate(path: Path, start: int) -> None:
    if path.exists():
        kept = [row for row in read(path) if row["step"] <= start]
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _one_line(metrics: dict[str, Any]) -> str:
    parts = []
    for name, form in (("loss", ".4f"), ("lr", ".1e"), ("images_per_s", ".0f"), ("data_wait", ".0%")):
        if name in metrics:
            label = {"images_per_s": "img/s", "data_wait": "wait"}.get(name, name)
            parts.append(f"{label} {metrics[name]:{form}}")
    return " ".join(parts)
