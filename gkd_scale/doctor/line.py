"""The result of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Line:
    """One finding. ``todo`` says what to do about a ``warn`` or ``fail``, and is dropped for an ``ok``;
    ``data`` has its numbers for scripts. Bytes are bytes, times are seconds.
    """

    name: str
    state: State
    value: str
    todo: str = ""
    data: Mapping[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.state == "ok":
            object.__setattr__(self, "todo", "")


def gib(count: float) -> str:
    """Bytes as GiB."""
    return f"{count / 2**30:.1f} GiB"
