"""The result of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Line:
    """One finding. ``todo`` says what to do about a ``warn`` or ``fail``; ``data`` has its numbers
    for scripts. Bytes are bytes, times are seconds.
    """

    name: str
    state: State
    value: str
    todo: str = ""
    data: Mapping[str, float | str] = field(default_factory=dict)


def graded(
    name: str, state: State, value: str, todo: str, data: Mapping[str, float | str] | None = None
) -> Line:
    """A line; ``todo`` is for what is not ok."""
    return Line(name, state, value, "" if state == "ok" else todo, data or {})


def gib(count: float) -> str:
    """Bytes as GiB."""
    return f"{count / 2**30:.1f} GiB"
