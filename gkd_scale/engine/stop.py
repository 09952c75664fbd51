"""Stopping when asked: SIGTERM from a scheduler, or Ctrl-C.

The loop finishes its step, every rank learns of the request in the reduction of that step's losses, all
write the checkpoint, and the process ends with status 0: the same command goes on from there.
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
    """Training was asked to stop after ``step`` of ``steps``; its checkpoint is whole."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped after step {step} of {steps}")
        self.step, self.steps = step, steps


@contextmanager
def requests() -> Iterator[Callable[[], bool]]:
    """While the block lasts, SIGTERM and Ctrl-C are requests; yields whether there was one.

    A second Ctrl-C raises KeyboardInterrupt. Outside the main thread, signals are left as they are.
    """
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, ask) for each in SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
