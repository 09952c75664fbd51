"""Runs a logger on a separate thread: training does not wait for it, nor end if it fails."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from gkd_scale.engine.loggers import Logger, LogRow, Status
from gkd_scale.errors import one_line

RETRY = 30.0
"""Seconds from a failure of a logger to the next try."""
PATIENCE = {"finished": 120.0, "stopped": 10.0, "failed": 10.0}
"""Seconds that a training waits for a logger at its end. Launchers kill a stopped training after 30."""
_START = threading.Lock()
"""The runs of a pass open their stores one after the other: the first creates it, the others reuse it."""
_End = tuple[Status, Mapping[str, float]]


class Follower:
    """Sends rows to the logger that ``start()`` opens, from ``past`` on. ``say`` prints a line.

    It prints one line at the first failure. It keeps the rows and tries again, so that nothing is lost if the
    logger works again.
    """

    def __init__(
        self, name: str, start: Callable[[], Logger], past: Sequence[LogRow], say: Callable[[str], None]
    ) -> None:
        self.name = name
        self._start, self._say = start, say
        self._pending: list[LogRow] = list(past)
        self._queue: queue.SimpleQueue[LogRow | _End] = queue.SimpleQueue()
        self._logger: Logger | None = None
        self._last: int | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._follow, name=f"log-{name}", daemon=True)
        self._thread.start()

    def put(self, step: int, numbers: Mapping[str, float]) -> None:
        """Queue the numbers of a step."""
        self._queue.put((step, numbers))

    def close(self, status: Status, final: Mapping[str, float]) -> None:
        """Send the rest and close the logger; wait at most :data:`PATIENCE` seconds."""
        self._queue.put((status, final))
        self._thread.join(PATIENCE[status])
        if self._thread.is_alive():
            self._say(f"{self.name} does not answer: what it lacks is in metrics.jsonl")

    def _follow(self) -> None:
        retry_at = time.monotonic()
        end: _End | None = None
        while end is None:
            for item in self._wait(retry_at):
                if isinstance(item[0], int):
                    self._pending.append((item[0], item[1]))
                else:
                    end = (item[0], item[1])
            if end is not None or time.monotonic() >= retry_at:
                retry_at = time.monotonic() + (0.0 if self._send(end) else RETRY)

    def _wait(self, retry_at: float) -> list[LogRow | _End]:
        """Items of the queue. Waits for one, but not past ``retry_at`` if there is something to send."""
        due = self._pending or self._logger is None
        timeout = max(0.0, retry_at - time.monotonic()) if due else None
        items: list[LogRow | _End] = []
        with suppress(queue.Empty):
            items.append(self._queue.get(timeout=timeout))
            while True:
                items.append(self._queue.get_nowait())
        return items

    def _send(self, end: _End | None) -> bool:
        """Send pending rows, and the end. Returns whether that worked."""
        try:
            if self._logger is None:
                with _START:
                    self._logger = self._start()
            if self._last is None:
                self._last = self._logger.last()
            rows = [row for row in self._pending if row[0] > self._last]
            if rows:
                self._logger.log(rows)
                self._last = rows[-1][0]
            self._pending.clear()
            if end is not None:
                self._logger.end(*end)
        except Exception as error:  # of any kind: training goes on
            self._last = None
            reason = one_line(error)[:200]
            if end is not None:
                self._say(f"{self.name} failed, it lacks the last {len(self._pending)} steps: {reason}")
            elif not self._failed:
                self._say(f"{self.name} failed, training goes on without it: {reason}")
            self._failed = True
            return False
        if self._failed:
            self._say(f"{self.name} works again")
            self._failed = False
        return True
