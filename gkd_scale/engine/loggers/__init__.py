"""Loggers: stores for a run's numbers besides ``metrics.jsonl``. One module a logger, behind one Protocol.

A logger follows ``metrics.jsonl``. When a run resumes, the logger returns the last step in its store and
gets the later rows of the file. So its store has each step once, also after a kill, and a logger that is
added to a running training gets the past too.

To add one: a module here with :class:`LoggerModule`'s functions, its name in :data:`LOGGERS`, its package
as an extra in ``pyproject.toml``. Light: nothing here imports torch or a logger's package.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from gkd_scale import files
from gkd_scale.errors import ConfigError, one_line

LOGGERS = ("tensorboard", "wandb", "mlflow")
DEFAULT = ("tensorboard",)
NONE = "none"
CHOICES = (*LOGGERS, NONE)
HELP = "where numbers go besides OUT/metrics.jsonl, repeatable; none: nowhere else"
"""The help text of ``--log``."""
FOLDER = "loggers"
"""Folder in a run folder for what a logger has to remember, such as its run's id."""

LogRow = tuple[int, Mapping[str, float]]
"""An optimizer step (from 1) and its numbers by name."""
Status = Literal["finished", "stopped", "failed"]
"""How a training ended: complete, stopped on request (it can go on), or by an exception."""


@dataclass(frozen=True)
class RunFacts:
    """A run for loggers. ``config`` is nested plain types; ``tags`` are short texts by name."""

    title: str
    out: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def memory(self, logger: str) -> dict[str, Any]:
        """The facts that ``logger`` stored in this run folder; empty before the first time."""
        return files.read_json(self.out / FOLDER / f"{logger}.json")

    def remember(self, logger: str, **facts: Any) -> None:
        """Store ``facts`` for the next time that this run resumes."""
        files.write_json(self.out / FOLDER / f"{logger}.json", facts)


class Logger(Protocol):
    """A run in one store. All calls come from one thread; after an exception, the call is repeated later."""

    def last(self) -> int:
        """The last step that the store has; 0 for none."""
        ...

    def log(self, rows: Sequence[LogRow]) -> None:
        """Store rows, steps ascending, all above :meth:`last`."""
        ...

    def end(self, status: Status, final: Mapping[str, float]) -> None:
        """Store the final numbers and close; the run may be opened again to go on."""
        ...


class LoggerModule(Protocol):
    """The interface of a logger's module."""

    PACKAGE: str
    """The package that it imports."""

    def require(self) -> None:
        """Import the package; ConfigError if the user has to do something first, such as to log in.

        It must not wait or prompt.
        """
        ...

    def start(self, run: RunFacts, start: int, say: Callable[[str], None]) -> Logger:
        """Open the store for ``run``, which goes on after step ``start``; ``say`` tells the user a line."""
        ...


def module(name: str) -> LoggerModule:
    """The module of a logger. It imports the logger's package at the first call."""
    return cast(LoggerModule, importlib.import_module(f"{__name__}.{name}"))


def require(names: Sequence[str]) -> None:
    """ConfigError if a logger's package is missing or broken, or if the user has to set it up first.

    Imports the packages here, because several threads should not import them at once.
    """
    for name in names:
        logger = module(name)
        if importlib.util.find_spec(logger.PACKAGE) is None:
            raise ConfigError(
                f"--log {name} needs the package {logger.PACKAGE}, which is not installed",
                f"pip install 'gkd-scale[{name}]'",
            )
        try:
            logger.require()
        except ConfigError:
            raise
        except Exception as error:  # the package is broken, or does not fit the version of another
            reason = one_line(error)[:200]
            raise ConfigError(
                f"--log {name}: the package {logger.PACKAGE} cannot be used: {reason}",
                f"pip install --upgrade 'gkd-scale[{name}]'",
            ) from None


def select(log: Sequence[str]) -> list[str]:
    """The loggers that ``--log`` names, without repetition; ConfigError for ``none`` beside others."""
    if NONE in log and set(log) != {NONE}:
        raise ConfigError(f"--log {NONE} is given beside {', '.join(set(log) - {NONE})}", "give one of them")
    return [name for name in dict.fromkeys(log) if name != NONE]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    settings: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        settings |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return settings
