"""Where a run's numbers go besides ``metrics.jsonl``: one module a logger, behind one Protocol.

A logger follows ``metrics.jsonl``. When a run goes on, it is asked for the last step that its store has: rows
that the store lacks are sent from the file, and rows that it has are not sent again. So every step is there
once, after a kill as well, and a logger that is added to a running training gets its past too.

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
from gkd_scale.errors import ConfigError

LOGGERS = ("tensorboard", "wandb", "mlflow")
DEFAULT = ("tensorboard",)
NONE = "none"
CHOICES = (*LOGGERS, NONE)
HELP = "where numbers go besides OUT/metrics.jsonl, repeatable; none: nowhere else"
"""Of the option ``--log``."""
FOLDER = "loggers"
"""In a run folder: what a logger has to remember, such as its run's id."""

Row = tuple[int, Mapping[str, float]]
"""An optimizer step (from 1) and its numbers by name."""
Status = Literal["finished", "stopped", "failed"]
"""How a training ended: done, asked to stop (it can go on), or by an exception."""


@dataclass(frozen=True)
class Tracked:
    """A run that is logged. ``config`` is nested plain types; ``tags`` are short texts by name."""

    title: str
    out: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def memory(self, logger: str) -> dict[str, Any]:
        """What ``logger`` remembered in this run folder; empty where it has not been here."""
        return files.read_json(self.out / FOLDER / f"{logger}.json")

    def remember(self, logger: str, **facts: Any) -> None:
        """Keep ``facts`` for the next time that this run goes on."""
        files.write_json(self.out / FOLDER / f"{logger}.json", facts)


class Logger(Protocol):
    """A run in one store. All calls come from one thread; an exception is reported and tried again later."""

    def last(self) -> int:
        """The last step that the store has; 0 for none."""
        ...

    def log(self, rows: Sequence[Row]) -> None:
        """Store rows, steps ascending, all above :meth:`last`."""
        ...

    def end(self, status: Status, final: Mapping[str, float]) -> None:
        """Store the final numbers and close; the run may be opened again to go on."""
        ...


class LoggerModule(Protocol):
    """What a module of a logger has."""

    PACKAGE: str
    """The package that it imports."""

    def require(self) -> None:
        """Import the package; ConfigError where the user has to do something first, such as to log in.

        It must not wait or ask.
        """
        ...

    def start(self, run: Tracked, start: int, say: Callable[[str], None]) -> Logger:
        """Open the store for ``run``, which goes on after step ``start``; ``say`` tells the user a line."""
        ...


def module(name: str) -> LoggerModule:
    """The module of a logger. It imports the logger's package only when it is used."""
    return cast(LoggerModule, importlib.import_module(f"{__name__}.{name}"))


def require(names: Sequence[str]) -> None:
    """ConfigError for a logger whose package is missing or broken, or that the user has to set up first.

    Imports the packages: they should not be imported on several threads at once.
    """
    for name in names:
        found = module(name)
        if importlib.util.find_spec(found.PACKAGE) is None:
            raise ConfigError(
                f"--log {name} needs the package {found.PACKAGE}, which is not installed",
                f"pip install 'gkd-scale[{name}]'",
            )
        try:
            found.require()
        except ConfigError:
            raise
        except Exception as error:  # of a package that is broken, or too old or too new for another
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(
                f"--log {name}: the package {found.PACKAGE} cannot be used: {reason}",
                f"pip install --upgrade 'gkd-scale[{name}]'",
            ) from None


def chosen(log: Sequence[str]) -> list[str]:
    """The loggers that ``--log`` names, each once; ConfigError for none beside others."""
    if NONE in log and set(log) != {NONE}:
        raise ConfigError(f"--log {NONE} is given beside {', '.join(set(log) - {NONE})}", "give one of them")
    return [name for name in dict.fromkeys(log) if name != NONE]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found
