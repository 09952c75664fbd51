"""``gkd-scale benchmark``: run what is missing of a recipe, then write the table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from gkd_scale import console, files
from gkd_scale.benchmark import table
from gkd_scale.benchmark.config import BenchmarkConfig, Recipe, read_recipe
from gkd_scale.benchmark.plan import Plan, Work, cells, steps_of
from gkd_scale.errors import ConfigError
from gkd_scale.steps import run_step


def benchmark(cfg: BenchmarkConfig) -> None:
    """Run the chosen cells and print the table; the same call goes on where it stopped.

    Writes ``results.json``, ``table.md`` and ``bars.png`` under ``cfg.out``. Raises ConfigError for the
    recipe, GkdError where a step fails.
    """
    out = cfg.out or Path("runs") / cfg.recipe.stem
    recipe = read_recipe(cfg.recipe, cfg.data, out)
    if cfg.passes is not None:
        recipe.budget.passes = cfg.passes
    for script in ("stage1.py", "stage2.py"):
        if not (cfg.launchers / script).is_file():
            raise ConfigError(
                f"there is no {cfg.launchers / script}", "run from a checkout, or give --launchers FOLDER"
            )
    works = Plan(cfg, recipe, out).works(cells(recipe, cfg.only))
    console.out.print(budget(recipe))
    if cfg.dry_run:
        for work in works:
            console.out.print(shlex.join(work.step.command), markup=False)
        return
    seconds = run(works, out)
    report(recipe, out, seconds)


def budget(recipe: Recipe) -> Table:
    """Steps by method and phase, for the budget that all share."""
    shown = Table(title=f"{recipe.budget.passes} student passes for every method")
    for column in ("method", "steps"):
        shown.add_column(column)
    for method in recipe.methods:
        steps = steps_of(method, recipe)
        shown.add_row(method, ", ".join(f"{phase}: {count}" for phase, count in steps.items()))
    return shown


def run(works: Sequence[Work], out: Path) -> dict[str, float]:
    """Run what has not been done yet with this very command; seconds by name, of all that is done."""
    seconds: dict[str, float] = {}
    for number, work in enumerate(works, 1):
        marker = out / "done" / f"{work.name}.json"
        before = _done(marker, work)
        if before is None:
            place = f"{number}/{len(works)}{_eta(works, number - 1, seconds)}"
            before = run_step(work.step, place, out / "logs" / f"{work.name}.log")
            files.write_json(marker, {"command": work.step.command, "seconds": round(before, 1)})
        seconds[work.name] = before
    return seconds


def _done(marker: Path, work: Work) -> float | None:
    """The seconds that ``work`` took; None where it must be run."""
    if not (marker.is_file() and work.proof.exists()):
        return None
    record = json.loads(marker.read_text(encoding="utf-8"))
    return float(record["seconds"]) if record["command"] == work.step.command else None


def _eta(works: Sequence[Work], first: int, seconds: dict[str, float]) -> str:
    """What is left, from the seconds a step of each kind took; kinds not seen yet count as the average."""
    spent: dict[str, tuple[float, float]] = {}
    for work in works[:first]:
        took, amount = spent.get(work.kind, (0.0, 0.0))
        spent[work.kind] = (took + seconds[work.name], amount + work.amount)
    if not spent:
        return ""
    average = sum(took for took, _ in spent.values()) / first
    rates = {kind: took / amount for kind, (took, amount) in spent.items()}
    left = sum(rates[work.kind] * work.amount if work.kind in rates else average for work in works[first:])
    return f" (about {left / 60:.0f} min left)"


def report(recipe: Recipe, out: Path, seconds: dict[str, float]) -> None:
    """Print the table and write it as JSON, markdown and, with matplotlib, a picture."""
    rows = table.collect(recipe, out)
    files.write_json(
        out / "results.json",
        {
            "title": recipe.title,
            "passes": recipe.budget.passes,
            "steps": {method: steps_of(method, recipe) for method in recipe.methods},
            "seconds": seconds,
            "miou": table.as_json(rows),
        },
    )
    files.write_text(out / "table.md", table.markdown(recipe, rows))
    drawn = table.bars(rows, out / "bars.png")
    console.out.print(table.shown(recipe, rows))
    written = ["results.json", "table.md", *(["bars.png"] if drawn else [])]
    console.out.print(f"written to {out}: {', '.join(written)}")
