"""Requests to stop: SIGTERM from a scheduler, or Ctrl-C.

The loop finishes its step. The reduction of that step's losses carries the request to every rank. All write
the checkpoint and end with status 0; the same command goes on from there.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Training stopped on request after ``step`` of ``steps``; its checkpoint is whole."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped after step {step} of {steps}")
        self.step, self.steps = step, steps


@contextmanager
def requests() -> Iterator[Callable[[], bool]]:
    """Inside the block, SIGTERM and Ctrl-C only record a request. Yields a function: whether there was one.

    A second Ctrl-C raises KeyboardInterrupt. Outside the main thread, the function changes no signal handler.
    """
    signals: list[int] = []

    def record(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, record) for number in SIGNALS}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
