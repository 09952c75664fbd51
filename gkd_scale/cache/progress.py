"""What a build tells its user: a progress bar meanwhile, and a report at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.text import Text

from gkd_scale import console
from gkd_scale.cache.manifest import MANIFEST

_SHOWN_ERRORS = 5
_LOCK = threading.Lock()


@dataclass
class Seconds:
    """Seconds that builders waited for images, ran the teacher, and waited for the writer; and the total.

    Several devices add up. On a GPU, the first two overlap.
    """

    read: float = 0.0
    teacher: float = 0.0
    write: float = 0.0
    total: float = 0.0


@dataclass
class BuildReport:
    """What a build did. ``images`` counts source images, ``errors`` maps an unreadable one to the reason.

    ``notes`` name what else lies beside the images.
    """

    out: Path
    images: int
    views: int
    shards: int
    errors: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shards_built: int = 0
    samples_built: int = 0
    bytes_written: int = 0
    seconds: Seconds = field(default_factory=Seconds)

    def count(self, *, shards: int = 0, samples: int = 0, size: int = 0) -> None:
        """Add what was built; from any thread."""
        with _LOCK:
            self.shards_built += shards
            self.samples_built += samples
            self.bytes_written += size

    @contextmanager
    def timer(self, kind: str) -> Iterator[None]:
        """Add the seconds of a block to ``seconds.KIND``; from any thread."""
        start = time.monotonic()
        try:
            yield
        finally:
            with _LOCK:
                setattr(self.seconds, kind, getattr(self.seconds, kind) + time.monotonic() - start)

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        if self.shards_built == 0:
            lines = [f"{self.out} is already complete: {self._content()}"]
        else:
            s = self.seconds
            rate = self.samples_built / s.total if s.total else 0.0
            lines = [
                f"{self.out} is complete: {self._content()}",
                f"{self.samples_built} samples, {self.bytes_written / 1e6:.1f} MB in {s.total:.1f} s "
                f"({rate:.1f} images/s; waiting for images {s.read:.1f} s, teacher {s.teacher:.1f} s, "
                f"waiting for the writer {s.write:.1f} s)",
            ]
        if self.errors:
            lines.append(f"{len(self.errors)} of {self.images} images could not be read and are left out:")
            lines += [f"  {name}: {reason}" for name, reason in list(self.errors.items())[:_SHOWN_ERRORS]]
            lines.append(f"all are listed in {self.out / MANIFEST} (status 'error')")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def _content(self) -> str:
        return f"{self.images - len(self.errors)} images x {self.views} views in {self.shards} shards"


@contextmanager
def display(report: BuildReport, total: int, completed: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """The progress bar over ``total`` views, of which ``completed`` are built; below it rates and seconds.

    Yields a function that counts views as done.
    """
    start, seconds, bar = time.monotonic(), report.seconds, console.progress()
    task = bar.add_task("cache-teacher", total=total, completed=completed)

    def render() -> Group:
        elapsed = max(time.monotonic() - start, 1e-9)
        rate, speed = report.samples_built / elapsed, report.bytes_written / elapsed / 1e6
        text = (
            f"  {rate:.1f} images/s  {speed:.1f} MB/s"
            f"  read {seconds.read:.0f} s  teacher {seconds.teacher:.0f} s  write {seconds.write:.0f} s"
        )
        return Group(bar, Text(text, style="dim"))

    live: AbstractContextManager[object] = (
        nullcontext() if quiet else Live(console=console.out, get_renderable=render)
    )
    try:
        with live:
            yield partial(bar.advance, task)
    finally:
        if not quiet and not console.out.is_interactive:
            console.out.print()
