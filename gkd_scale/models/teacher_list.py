"""``teachers``: what can be a teacher, what it costs, and what of it is on this machine already."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gkd_scale import console
from gkd_scale.commands import shell
from gkd_scale.config import option
from gkd_scale.errors import ConfigError, ModelError, nearest
from gkd_scale.models.names import HF
from gkd_scale.models.teacher_zoo import (
    IMAGE_SIDE,
    NAMES,
    TeacherRow,
    count,
    is_here,
    read,
    transformers_here,
)
from gkd_scale.ranges import Range

WIDTH = 140
"""Columns of the table; a narrower terminal wraps its lines."""

NOTE = """\
GFLOP: one image forward, 2 a multiply-add. Licence: of the weights, as timm or the model's card says it.
Any other timm name works too, and any vision model of transformers: --teacher hf:OWNER/NAME or hf:FOLDER.
Which layer to cache: gkd-scale probe. What a cache costs: gkd-scale plan."""


@dataclass
class TeachersConfig:
    """List teachers with their arithmetic and licence, and say which are on this machine."""

    filter: list[str] = option([], "part of a name or family, repeatable: all must match", metavar="TEXT")
    millions: tuple[float, float] | None = option(
        None, "smallest and largest number of parameters, in millions", metavar=("MIN", "MAX")
    )
    here: bool = option(False, "only those whose weights are in a cache on this machine")
    image_size: int | None = option(
        None,
        f"count the arithmetic for squares of this side, about 2 s a teacher (default: {IMAGE_SIDE})",
        metavar="N",
        within=Range(ge=14, le=4096, hint="pixels, for example 512"),
    )
    json: bool = option(False, "print JSON and nothing else")


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher, and ``here``: whether its weights are on this machine."""

    teacher: TeacherRow
    here: bool

    @property
    def command(self) -> str:
        """The command that caches it."""
        return shell(
            *("gkd-scale", "cache-teacher", "--teacher", self.teacher.name),
            *("--image-size", self.teacher.side, "--images", "IMAGES", "--out", "CACHE"),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        values = {key: value for key, value in asdict(self.teacher).items() if key != "weights"}
        optional = {"gflops": self.teacher.gflops or None, "licence": self.teacher.licence or None}
        return {**values, **optional, "here": self.here, "command": self.command}


def main(cfg: TeachersConfig) -> None:
    """Print the table, or JSON."""
    rows = select(cfg)
    if cfg.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        show(rows)


def select(cfg: TeachersConfig) -> list[TeacherEntry]:
    """The teachers that ``cfg`` asks for, smallest first; ConfigError if there is none."""
    low, high = cfg.millions or (0.0, float("inf"))
    words = [word.lower() for word in cfg.filter]

    def matches(t: TeacherRow) -> bool:
        return all(word in f"{t.name} {t.family}".lower() for word in words)

    candidates = [
        *filter(matches, read()),
        *(_of_transformers(*pair, cfg.image_size) for pair in transformers_here() if matches(pair[0])),
    ]
    teachers = sorted((t for t in candidates if t), key=lambda t: (t.parameters, t.name))
    rows = [
        TeacherEntry(t, t.name.startswith(HF) or is_here(t))
        for t in teachers
        if low <= t.parameters / 1e6 <= high
    ]
    rows = [row for row in rows if row.here or not cfg.here]
    if not rows:
        filters = " and ".join(map(repr, cfg.filter)) or "these sizes"
        raise ConfigError(
            f"no teacher matches {filters}" + (" on this machine" if cfg.here else ""),
            nearest(cfg.filter[0] if cfg.filter else "", NAMES) or f"families: {', '.join(NAMES)}",
        )
    return [TeacherEntry(_at_size(row.teacher, cfg.image_size), row.here) for row in rows]


def _at_size(teacher: TeacherRow, side: int | None) -> TeacherRow:
    """A teacher of timm at another image size."""
    if teacher.name.startswith(HF) or side in (None, teacher.side):
        return teacher
    return count(teacher.name, teacher.family, side)


def _of_transformers(teacher: TeacherRow, folder: Path, side: int | None) -> TeacherRow | None:
    """A teacher in a ``folder`` of the hub's cache, its vision tower counted; None if it is none."""
    from gkd_scale.models import checkpoints, hf

    side = teacher.side if side is None else max(1, round(side / teacher.stride)) * teacher.stride
    try:
        checkpoint = checkpoints.open_checkpoint(teacher.name, folder, config_only=True)
    except ModelError:
        return None
    try:
        costs = hf.cost_of(checkpoint, (side, side))
    except ModelError:  # it takes no images of this size
        return replace(teacher, side=side)
    return replace(teacher, side=side, gflops=costs.gflops, width=costs.dim, parameters=costs.parameters)


def show(rows: list[TeacherEntry]) -> None:
    """The table on the terminal."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    table.title = "teachers; a star: the weights are on this machine"
    for name in ("", "teacher", "family", "M", "patch", "width", "size", "GFLOP", "licence"):
        is_text = name in ("teacher", "family", "licence")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        t = row.teacher
        sizes = map(str, (t.stride, t.width, t.side))
        gflops = f"{t.gflops:.3g}" if t.gflops else "?"
        names = ("*" if row.here else "", t.name, t.family)
        table.add_row(*names, f"{t.parameters / 1e6:.1f}", *sizes, gflops, t.licence or "?")
    wide = Console(highlight=False, width=max(console.out.width, WIDTH))
    wide.print(table)
    wide.print(f"the command for the first: {rows[0].command}", markup=False, soft_wrap=True)
    wide.print(NOTE)
