"""What a run says: a live line for people, JSONL for scripts, TensorBoard for both. Rank 0 only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from gkd_scale import console, files

METRICS = "metrics.jsonl"


class RunLog:
    """``metrics.jsonl`` (one object a step), TensorBoard under ``tensorboard/``, and a live display.

    A run that goes on from ``start`` drops what an interrupted one wrote after it, so every step is
    there once.
    """

    def __init__(self, out: Path, title: str, start: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.steps = steps
        self.start = start
        _truncate(out / METRICS, start)
        self._file = open(out / METRICS, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1 if start else None)
        self._progress = _display(title)
        self._task: TaskID = self._progress.add_task(title, total=steps, completed=start, text="")
        self._live = console.out.is_terminal
        self._print_every = max(1, steps // 20)
        self._began = time.monotonic()
        if self._live:
            self._progress.start()

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of optimizer step number ``step`` (from 1)."""
        row = {"step": step, **metrics}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)
        text = _one_line(metrics)
        self._progress.update(self._task, completed=step, text=text)
        if not self._live and (step % self._print_every == 0 or step == self.steps):
            left = (time.monotonic() - self._began) / max(1, step - self.start) * (self.steps - step)
            console.out.print(f"step {step}/{self.steps}  {text}  ETA {left:.0f}s")

    def note(self, text: str) -> None:
        """A line for people, above the live display."""
        console.out.print(text)

    def close(self) -> None:
        """Flush and close everything; safe to call twice."""
        self._progress.stop()
        if not self._file.closed:
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


def _display(title: str) -> Progress:
    return console.progress("{task.fields[text]}", disable=not title)


def _one_line(metrics: dict[str, Any]) -> str:
    parts = []
    for name, form in (("loss", ".4f"), ("lr", ".1e"), ("images_per_s", ".0f"), ("data_wait", ".0%")):
        if name in metrics:
            label = {"images_per_s": "img/s", "data_wait": "wait"}.get(name, name)
            parts.append(f"{label} {metrics[name]:{form}}")
    return " ".join(parts)
