"""TensorBoard: event files under ``OUT/tensorboard``.

The package is a dependency of the project, not an extra: every run has written these files since the first
version, and users rely on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gkd_scale import documents
from gkd_scale.engine.loggers import Logger, LogRow, RunFacts, Status

PACKAGE = "tensorboard"
EVENTS = "tensorboard"


def require() -> None:
    """Import the package; it writes files and needs no setup."""
    import torch.utils.tensorboard  # noqa: F401


def start(run: RunFacts, start: int, say: Callable[[str], None]) -> Logger:  # noqa: ARG001
    """Event files that go on after step ``start``: readers drop later steps of an interrupted run."""
    return _TensorBoard(run, start)


class _TensorBoard:
    def __init__(self, run: RunFacts, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.out / EVENTS
        exists = any(folder.glob("events.*"))
        self._last = start if exists else 0
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if exists else None)
        if run.config:
            text = documents.dump_yaml(dict(run.config))
            self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), start)

    def last(self) -> int:
        return self._last

    def log(self, rows: Sequence[LogRow]) -> None:
        for step, numbers in rows:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
            self._last = step

    def end(self, status: Status, final: Mapping[str, float]) -> None:
        if status == "finished":
            for name, value in final.items():
                self._writer.add_scalar(f"final/{name}", value, self._last)
        self._writer.close()
