"""The table: rows are methods, columns are domains and their average, ours beside the published numbers.

Before them stands the mIoU on in-domain validation, which chose the best step, and after them the minutes
of a seed: every step of its cell, without caches and other steps that cells share.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from gkd_scale import files
from gkd_scale.benchmark.cells import evaluation
from gkd_scale.benchmark.config import Recipe, title
from gkd_scale.errors import ConfigError, nearest

PUBLISHED = Path(__file__).with_name("published.yaml")
AVERAGE = "Avg"
IN_DOMAIN = "in-domain"
MINUTES = "minutes"


@dataclass(frozen=True)
class Score:
    """What one method has in one column, by seed, and what is published (None: nothing)."""

    values: tuple[float, ...]
    published: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation over seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        ours = f"{self.mean:.1f}{spread}" if self.values else "–"
        return ours if self.published is None else f"{ours} ({self.published:.1f})"


Rows = dict[str, dict[str, Score]]
"""Scores by method and column."""


def collect(recipe: Recipe, out: Path) -> Rows:
    """What has been measured so far, each average over domains first, then over seeds."""
    published = read_published(recipe.published) if recipe.published else {}
    columns = [IN_DOMAIN, *recipe.domains, AVERAGE, MINUTES]
    times = seconds(out)
    rows: Rows = {}
    for method in recipe.methods:
        theirs = published.get(method, {})
        cells = [_by_column(recipe, evaluation(out, method, seed)) for seed in recipe.seeds]
        for seed, cell in zip(recipe.seeds, cells, strict=True):
            parts = [value for name, value in times.items() if cell and name.startswith(f"{method}-{seed}-")]
            cell.update({MINUTES: sum(parts) / 60} if parts else {})
        rows[method] = {
            column: Score(tuple(cell[column] for cell in cells if column in cell), theirs.get(column))
            for column in columns
        }
    return {method: row for method, row in rows.items() if row[AVERAGE].values or method in published}


def _by_column(recipe: Recipe, path: Path) -> dict[str, float]:
    """The mIoU of a cell; no average if a domain of the recipe has not been measured."""
    results, best = files.read_json(path), files.read_json(path.with_name("best.json"))
    values = {domain: float(results[domain]["miou"]) for domain in recipe.domains if domain in results}
    if len(values) == len(recipe.domains):
        values[AVERAGE] = statistics.fmean(values.values())
    return {IN_DOMAIN: float(best["miou"]), **values} if results and best else values


def without(recipe: Recipe, out: Path) -> list[str]:
    """Classes that some mean of the table leaves out: no label of training or of a domain has them."""
    cells = [
        files.read_json(evaluation(out, method, seed)) for method in recipe.methods for seed in recipe.seeds
    ]
    names = [name for cell in cells for domain in cell.values() for name in domain.get("without", ())]
    return list(dict.fromkeys(names))


def seconds(out: Path) -> dict[str, float]:
    """The seconds of each step that is done, by name."""
    markers = {path.stem: files.read_json(path) for path in sorted((out / "done").glob("*.json"))}
    return {name: float(marker["seconds"]) for name, marker in markers.items() if marker.get("done")}


def read_published(name: str) -> dict[str, dict[str, float | None]]:
    """Published mIoU of ``BENCHMARK/PAIR`` by method and column; ConfigError for an unknown one."""
    benchmarks = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    del benchmarks["source"]
    names = [f"{bench}/{pair}" for bench, pairs in benchmarks.items() for pair in pairs if pair != "columns"]
    if name not in names:
        raise ConfigError(
            f"no published numbers are called '{name}'", nearest(name, names) or f"known: {', '.join(names)}"
        )
    bench, _, pair = name.partition("/")
    columns = benchmarks[bench]["columns"]
    return {method: dict(zip(columns, row, strict=True)) for method, row in benchmarks[bench][pair].items()}


def as_table(recipe: Recipe, rows: Rows, without: Sequence[str] = ()) -> Table:
    """The table for the terminal; ``without`` are classes that do not count."""
    header, *body = _cells(recipe, rows)
    table = Table(title=_caption(recipe, without))
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for line in body:
        table.add_row(*line)
    return table


def markdown(recipe: Recipe, rows: Rows, without: Sequence[str] = ()) -> str:
    """The table for a document."""
    header, *body = _cells(recipe, rows)
    rule = ["---", *("---:" for _ in header[1:])]
    lines = ["| " + " | ".join(line) + " |" for line in (header, rule, *body)]
    return f"{_caption(recipe, without)}\n\n" + "\n".join(lines) + "\n"


def _caption(recipe: Recipe, without: Sequence[str]) -> str:
    seeds = f"{len(recipe.seeds)} seed{'s' if len(recipe.seeds) > 1 else ''}"
    published = "; in brackets: arXiv 2603.02554" if recipe.published else ""
    over = f" (without {', '.join(without)} where no label has them)" if without else ""
    return f"{recipe.title}: mIoU in %{over}, mean ± standard deviation of up to {seeds}{published}"


def _cells(recipe: Recipe, rows: Rows) -> list[Sequence[str]]:
    lines: list[Sequence[str]] = [("method", IN_DOMAIN, *recipe.domains, AVERAGE, MINUTES)]
    lines += [(title(method), *map(str, row.values())) for method, row in rows.items()]
    return lines


def as_json(rows: Rows) -> dict[str, Any]:
    """The same with every seed's number."""
    return {
        method: {
            column: {
                "values": list(score.values),
                "mean": score.mean if score.values else None,
                "deviation": score.deviation,
                "published": score.published,
            }
            for column, score in row.items()
        }
        for method, row in rows.items()
    }


def bars(rows: Rows, path: Path) -> bool:
    """A bar for each method's average, the published one beside it, as PNG; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    means = {method: row[AVERAGE] for method, row in rows.items() if row[AVERAGE].values}
    figure = Figure(figsize=(8, 0.45 * len(means) + 1.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(means))
    scores = list(means.values())
    spread = [score.deviation or 0 for score in scores]
    axes.barh(places, [score.mean for score in scores], xerr=spread, height=0.6)
    marks = [(score.published, place) for place, score in enumerate(scores) if score.published is not None]
    if marks:
        axes.plot(*zip(*marks, strict=True), "k|", markersize=14, label="published")
        axes.legend()
    axes.set_yticks(places, [title(method) for method in means])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU in %, average of the domains")
    with files.atomic(path) as file:
        canvas.print_png(file)
    return True
