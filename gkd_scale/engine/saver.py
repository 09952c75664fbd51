"""Writes checkpoints beside the steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gkd_scale import console
from gkd_scale.engine import checkpoint
from gkd_scale.engine.checkpoint import Snapshot
from gkd_scale.engine.runtime import Runtime


class Saver:
    """A thread of rank 0 that writes one set of checkpoints at a time, inside a ``with`` block.

    Then it removes all but the newest ``keep`` and those of every ``keep_every``-th step. Leaving the
    block waits for it. Until the files are whole, rank 0 holds the snapshots: the state once more, in the
    CPU's memory.
    """

    def __init__(self, runtime: Runtime, keep: int, keep_every: int | None) -> None:
        self._runtime, self._keep, self._keep_every = runtime, keep, keep_every
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._future: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written; known to rank 0 alone."""
        return bool(self._future and self._future.done() and self._future.exception())

    def write(self, snapshots: Sequence[tuple[Path, Snapshot]]) -> None:
        """Begin to write snapshots, each into its folder. Call :meth:`wait` before it."""
        if self._runtime.main:
            self._future = self._pool.submit(self._write, snapshots)

    def wait(self) -> None:
        """Return when all is written; every rank raises the error that rank 0 had. Collective."""
        self._runtime.on_main(self._result)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if self.failed and kind is not None and self._future is not None:  # the other error is raised
            console.err.print(f"a checkpoint was not written: {self._future.exception()}", markup=False)

    def _write(self, snapshots: Sequence[tuple[Path, Snapshot]]) -> None:
        for folder, snapshot in snapshots:
            checkpoint.write(folder, snapshot)
        for folder, _ in snapshots:  # one step is always whole in all
            checkpoint.prune(folder, self._keep, self._keep_every)

    def _result(self) -> None:
        future, self._future = self._future, None
        if future is not None:
            future.result()
