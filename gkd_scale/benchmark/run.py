"""``gkd-scale benchmark``: run what is missing of a recipe, then write the table."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from gkd_scale import console, files
from gkd_scale.benchmark import table
from gkd_scale.benchmark.cells import Commands, Work, cells, evaluation, steps_of
from gkd_scale.benchmark.config import BenchmarkConfig, Recipe, read_recipe
from gkd_scale.errors import GkdError, RunError
from gkd_scale.subprocesses import Step, data_flags, require_launchers, run_step

PAGE = "report.html"


def benchmark(cfg: BenchmarkConfig) -> None:
    """Run the chosen cells and print the table; the same call goes on where it stopped.

    Writes ``results.json``, ``table.md``, ``bars.png`` and ``report.html`` under ``cfg.out``. Raises
    ConfigError for the recipe, GkdError if a step fails.
    """
    out = cfg.out or Path("runs") / cfg.recipe.stem
    recipe = read_recipe(cfg.recipe, cfg.data, out)
    if cfg.passes is not None:
        recipe.budget.passes = cfg.passes
    require_launchers(cfg.launchers)
    commands = Commands(cfg, recipe, out)
    works = commands.works(cells(recipe, cfg.only))
    console.out.print(budget(recipe))
    if cfg.dry_run:
        for work in works:
            console.paste("", *work.step.command)
        return
    out.mkdir(parents=True, exist_ok=True)
    with files.share(out / files.LOCK, _digest(commands.works(cells(recipe, []))), partial(_same, out)):
        run(works, out)
        report(recipe, out)
    step = page(recipe, out)
    if step is not None:
        run_step(step, "last:", out / "logs" / "report.log")
        console.out.print(f"written to {out / PAGE}: open it in a browser", markup=False)


def page(recipe: Recipe, out: Path) -> Step | None:
    """The command that shows one measured seed of each method on a page; None if nothing is measured yet."""
    runs: dict[str, str] = {}
    for method, seed in cells(recipe, []):
        if (path := evaluation(out, method, seed)).is_file():
            runs.setdefault(method, str(path.parent))
    if not runs:
        return None
    file = recipe.teacher.model.weights
    weights = ["--teacher-weights", str(file)] if file else []
    command = ["gkd-scale", "report", *runs.values(), *data_flags(recipe.domains), *weights]
    command += ["--images", "12", "--scenes", "1", "--out", str(out / PAGE)]
    return Step("show the runs on a page", command)


def _digest(works: Sequence[Work]) -> str:
    """The hash of every command of the table, which calls that share a folder must have in common."""
    commands = json.dumps([work.step.command for work in works])
    return hashlib.sha256(commands.encode()).hexdigest()


def _same(out: Path, holder: str, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise RunError(
            f"another benchmark with other settings is writing {out}: {holder}",
            "wait for it, or choose another --out",
        )


def budget(recipe: Recipe) -> Table:
    """Steps by method and phase, for the budget that all share."""
    steps_table = Table(title=f"{recipe.budget.passes} student passes for every method")
    for column in ("method", "steps"):
        steps_table.add_column(column)
    for method in recipe.methods:
        steps = steps_of(method, recipe)
        steps_table.add_row(method, ", ".join(f"{phase}: {count}" for phase, count in steps.items()))
    return steps_table


def run(works: Sequence[Work], out: Path) -> dict[str, float]:
    """Run the steps that are not done yet with this command on these results. Returns the seconds by name.

    Each step leaves ``done/NAME.json``: its command, the SHA-256 of the proofs of what it needed, whether it
    is done, and the seconds of its attempts. Output of an older command or of older results moves to
    ``old/``. Several calls may share ``out``: a step that two of them need is run by one, the other waits.
    """
    seconds: dict[str, float] = {}
    proofs: dict[str, str] = {}
    (out / "done").mkdir(parents=True, exist_ok=True)
    for number, work in enumerate(works, 1):
        place = f"{number}/{len(works)}{_eta(works, number - 1, seconds)}"
        with files.hold(out / "done" / f"{work.name}.lock", partial(_say_wait, work)):
            needs = {name: proofs[name] for name in work.needs}
            seconds[work.name] = _run(work, place, out, {"command": work.step.command, "needs": needs})
            proofs[work.name] = files.sha256_file(work.proof)
    return seconds


def _run(work: Work, place: str, out: Path, inputs: dict[str, Any]) -> float:
    """Run a step unless it is done. Returns its seconds. Its marker says if it is done, even if it fails."""
    marker = out / "done" / f"{work.name}.json"
    before = files.read_json(marker)
    same = all(before.get(key) == value for key, value in inputs.items())
    if same and before["done"] and work.proof.is_file():
        return float(before["seconds"])
    if before and not same:
        _set_aside(work, out)
    total = before["seconds"] if same and not before["done"] else 0.0
    began, complete = time.monotonic(), False
    files.write_json(marker, {**inputs, "done": False, "seconds": total})
    try:
        run_step(work.step, place, out / "logs" / f"{work.name}.log")
        complete = work.proof.is_file()
    finally:
        total = round(total + time.monotonic() - began, 1)
        files.write_json(marker, {**inputs, "done": complete, "seconds": total})
    if not complete:
        raise GkdError(f"'{work.step.title}' was stopped before its end", "the same command goes on")
    return total


def _say_wait(work: Work, _holder: str) -> None:
    console.out.print(f"another call runs '{work.step.title}': waiting for it", markup=False)


def _set_aside(work: Work, out: Path) -> None:
    """Move what an older run of this step has written to ``old/NAME-1``, ``-2``, ..."""
    if work.folder is None or not work.folder.exists():
        return
    number = next(n for n in itertools.count(1) if not (out / "old" / f"{work.name}-{n}").exists())
    place = out / "old" / f"{work.name}-{number}"
    place.parent.mkdir(exist_ok=True)
    work.folder.rename(place)
    text = f"{work.name} is run again: its command, or what it needs, changed; before: {place}"
    console.out.print(text, markup=False)


def _eta(works: Sequence[Work], first: int, seconds: dict[str, float]) -> str:
    """What is left, from the seconds a step of each kind took; kinds not seen yet count as the average."""
    totals: dict[str, tuple[float, float]] = {}
    for work in works[:first]:
        took, amount = totals.get(work.kind, (0.0, 0.0))
        totals[work.kind] = (took + seconds[work.name], amount + work.amount)
    if not totals:
        return ""
    average = sum(took for took, _ in totals.values()) / first
    rates = {kind: took / amount for kind, (took, amount) in totals.items()}
    rest = sum(rates[work.kind] * work.amount if work.kind in rates else average for work in works[first:])
    return f" (about {rest / 60:.0f} min left)"


def report(recipe: Recipe, out: Path) -> None:
    """Print the table and write it as JSON, markdown and, with matplotlib, a picture."""
    rows, without = table.collect(recipe, out), table.without(recipe, out)
    files.write_json(
        out / "results.json",
        {
            "title": recipe.title,
            "passes": recipe.budget.passes,
            "steps": {method: steps_of(method, recipe) for method in recipe.methods},
            "seconds": table.seconds(out),
            "without": without,
            "rows": table.as_json(rows),
        },
    )
    files.write_text(out / "table.md", table.markdown(recipe, rows, without))
    has_picture = table.bars(rows, out / "bars.png")
    console.out.print(table.as_table(recipe, rows, without))
    names = ["results.json", "table.md", *(["bars.png"] if has_picture else [])]
    console.out.print(f"written to {out}: {', '.join(names)}", markup=False)
