"""``students``: which student fits which GPU; a table from 1 M to 1 B parameters."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from gkd_scale import console
from gkd_scale.config import option
from gkd_scale.engine.zero_memory import zero_memory
from gkd_scale.errors import ConfigError, nearest
from gkd_scale.models.zoo import IMAGE_SIDE, NAMES, StudentRow, read

WIDTH = 140
"""Columns of the table; a narrower terminal wraps its lines."""

NOTE = """\
GFLOP: one image forward, 2 a multiply-add. Model states: weights, gradients and AdamW's moments in mixed
precision; activations and the QSD heads (about 6 · width · teacher's width parameters) come on top.
Any other timm name works too, as long as it gives a grid of tokens or a feature map."""


@dataclass
class StudentsConfig:
    """List students of many sizes and families, with the memory that training them takes."""

    filter: list[str] = option([], "part of a name or family, repeatable: all must match", metavar="TEXT")
    millions: tuple[float, float] | None = option(
        None, "smallest and largest number of parameters, in millions", metavar=("MIN", "MAX")
    )
    gpus: int = option(8, "GPUs that share the model states, on one node", metavar="N")
    json: bool = option(False, "print JSON and nothing else")

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"'gpus' is {self.gpus}, not at least 1", "change --gpus")


def main(cfg: StudentsConfig) -> None:
    """``gkd-scale students``: print the students that fit, as a table or as JSON."""
    rows = select(cfg)
    if cfg.json:
        entries = [{**asdict(row), "zero_gb": _gigabytes(row, cfg.gpus)} for row in rows]
        print(json.dumps(entries, indent=2))
    else:
        show(rows, cfg)


def select(cfg: StudentsConfig) -> list[StudentRow]:
    """The students that ``cfg`` asks for, smallest first; ConfigError if there is none."""
    low, high = cfg.millions or (0.0, float("inf"))
    words = [word.lower() for word in cfg.filter]
    rows = [
        row
        for row in read()
        if low <= row.parameters / 1e6 <= high
        and all(word in f"{row.name} {row.family}".lower() for word in words)
    ]
    if not rows:
        raise ConfigError(
            f"no student matches {' and '.join(map(repr, cfg.filter)) or 'these sizes'}"
            + (f" with {low:g} to {high:g} M parameters" if cfg.millions else ""),
            nearest(cfg.filter[0] if cfg.filter else "", NAMES) or f"families: {', '.join(NAMES)}",
        )
    return rows


def _gigabytes(row: StudentRow, gpus: int) -> dict[int, float]:
    """GB a GPU of a student's model states by ZeRO stage."""
    sizes = zero_memory(row.parameters, row.largest_layer, gpus)
    return {stage: round(size / 1e9, 4) for stage, size in sizes.items()}


def show(rows: list[StudentRow], cfg: StudentsConfig) -> None:
    """The table on the terminal."""
    table = Table(box=box.SIMPLE_HEAD, title_justify="left")
    table.title = f"students at {IMAGE_SIDE} px; GB of model states a GPU, {cfg.gpus} GPUs"
    for name in ("student", "family", "M", "stride", "width", "depth", "grid", "GFLOP"):
        is_text = name in ("student", "family", "depth")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for stage in range(4):
        table.add_column(f"ZeRO-{stage}", justify="right")
    for row in rows:
        shape = (f"{row.stride}", f"{row.width}", row.depth, f"{row.grid}x{row.grid}", f"{row.gflops:.3g}")
        memory = (f"{size:.2f}" for size in _gigabytes(row, cfg.gpus).values())
        table.add_row(row.name, row.family, f"{row.parameters / 1e6:.1f}", *shape, *memory)
    wide = Console(highlight=False, width=max(console.out.width, WIDTH))
    wide.print(table)
    wide.print(NOTE)
