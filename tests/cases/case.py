"""The registry of cases, and the bench that runs commands for them."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gkd_scale import config, console
from gkd_scale.cli import main
from gkd_scale.engine.runtime import Runtime
from tests.commands import search_main
from tests.conftest import ROOT

C = TypeVar("C")


@dataclass(frozen=True)
class Ran:
    """A command that ended: its exit status, what it printed on one line, and as it was printed (``raw``)."""

    code: int
    text: str
    raw: str = ""

    def __str__(self) -> str:
        """``exit 2: MESSAGE → HINT`` for an error, ``ok`` for a success."""
        assert "Traceback" not in self.text, self.text
        if self.code == 0:
            return "ok"
        _, error, message = self.text.partition("error: ")
        assert error, self.text
        return f"exit {self.code}: {message.strip()}"


class Bench:
    """A folder of its own for one case, and the product's commands in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cli(self, *arguments: object) -> Ran:
        """``gkd-scale ARGUMENTS``."""
        return self._ran(lambda: main([str(argument) for argument in arguments]))

    def stage1(self, *flags: object) -> Ran:
        """``launchers/stage1.py FLAGS`` on a world of one."""
        from gkd_scale.distill.config import Stage1Config
        from gkd_scale.distill.stage1 import train

        return self._launch(Stage1Config, train, "stage1.py", flags)

    def stage2(self, *flags: object) -> Ran:
        """``launchers/stage2.py FLAGS`` on a world of one."""
        from gkd_scale.segment.config import Stage2Config
        from gkd_scale.segment.stage2 import run

        return self._launch(Stage2Config, run, "stage2.py", flags)

    def _launch(
        self, cls: type[C], train: Callable[[C, Runtime, Path], None], prog: str, flags: Sequence[object]
    ) -> Ran:
        def command() -> None:
            cfg = config.parse(cls, [str(flag) for flag in flags], prog=prog, description="")
            with world_of_one() as runtime:
                train(cfg, runtime, ROOT / "launchers")

        return self._ran(lambda: console.run(command))

    def call(self, command: Callable[[], int]) -> Ran:
        """Any other command of ours: a function that returns the exit status."""
        return self._ran(command)

    def tune(self, *flags: object) -> Ran:
        """``tuning/search.py FLAGS``, for what is refused before Ray starts."""
        return self._ran(lambda: search_main([str(flag) for flag in flags]))

    def _ran(self, command: Callable[[], int]) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = command()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        raw = out.getvalue() + err.getvalue()
        return Ran(code, self.plain(raw), raw)

    def plain(self, text: str) -> str:
        """The text on one line, without this folder's path and colours."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        return " ".join(text.replace(f"{self.folder}/", "").replace(str(self.folder), ".").split())


_RUNTIME: list[Runtime] = []


@contextlib.contextmanager
def world_of_one() -> Iterator[Runtime]:
    """One process group for all cases; the environment is put back."""
    before = dict(os.environ)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    try:
        if not _RUNTIME:
            _RUNTIME.append(Runtime.start())
        yield _RUNTIME[0]
    finally:
        os.environ.clear()
        os.environ.update(before)


@dataclass(frozen=True)
class Case:
    """``kind`` is the section of the table, ``what`` the row; ``run`` returns the outcome, one line."""

    kind: str
    what: str
    run: Callable[[Bench], object]


CASES: list[Case] = []


def case(kind: str, what: str) -> Callable[[Callable[[Bench], object]], Callable[[Bench], object]]:
    """Register a function as a case. It asserts what must hold, and returns what its row says."""

    def register(run: Callable[[Bench], object]) -> Callable[[Bench], object]:
        assert all((each.kind, each.what) != (kind, what) for each in CASES), f"{kind}: {what} is there twice"
        CASES.append(Case(kind, what, run))
        return run

    return register
