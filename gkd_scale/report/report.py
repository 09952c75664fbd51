"""``gkd-scale report``: run folders to one HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gkd_scale import console, files
from gkd_scale.errors import ConfigError, RunError
from gkd_scale.report import charts, cost, page
from gkd_scale.report.config import ReportConfig
from gkd_scale.report.runs import Phase, Run, is_cache, read_runs
from gkd_scale.report.scenes import DomainLook, ReportModel, look
from gkd_scale.report.teacher import taught_by
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.finished import load_segmenter

_CURVES = (
    ("loss", "loss", True),
    ("learning rate", "lr", False),
    ("images/s", "images_per_s", False),
    ("share of the time spent waiting for data", "data_wait", False),
    ("mIoU in validation, %", "val_miou", False),
)


def report(config: ReportConfig) -> None:
    """Write the page. Raises RunError, ConfigError, ModelError or DataError before anything is written."""
    domains = config.domains()
    runs = read_runs(config.folders())
    subjects = _subjects(config, runs)
    looks = _looks(config, domains, runs, subjects) if domains else {}
    files.write_text(config.out, render(runs, looks, _costs(subjects), compare=config.compare is not None))
    size = config.out.stat().st_size / 1e6
    console.out.print(f"written to {config.out} ({size:.1f} MB): open it in a browser", markup=False)


def _subjects(config: ReportConfig, runs: Sequence[Run]) -> dict[str, ReportModel]:
    """The segmenters of the runs, with their teachers if these can be had."""
    subjects = {}
    for run in runs:
        if run.card is None:
            if config.compare:
                raise RunError(f"{run.folder} is a stage-1 run", "--compare takes two stage-2 runs")
            continue
        model = load_segmenter(run.folder, config.device)
        link = taught_by(run, config.teacher_weights, config.device)
        if isinstance(link, str):
            console.err.print(
                f"{run.name} is shown without its teacher: {link}", markup=False, style="yellow"
            )
            link = None
        subjects[run.name] = ReportModel(model, link)
    return subjects


def _costs(subjects: Mapping[str, ReportModel]) -> dict[str, cost.ModelCost]:
    """Costs of the runs, and of each of their teachers once."""
    costs = {name: cost.of_segmenter(subject.model) for name, subject in subjects.items()}
    teachers = {item.link.teacher.name: item.link.teacher for item in subjects.values() if item.link}
    return {**costs, **{f"teacher {name}": cost.of_teacher(item) for name, item in teachers.items()}}


def _looks(
    config: ReportConfig,
    domains: Mapping[str, str],
    runs: Sequence[Run],
    subjects: Mapping[str, ReportModel],
) -> dict[str, DomainLook]:
    if not subjects:
        raise ConfigError(
            "--data is given, but no run predicts classes", "give the --out folder of a stage 2"
        )
    datasets = {name: registry.open_dataset(ref) for name, ref in domains.items()}
    for name, dataset in datasets.items():
        for run in runs:
            if run.card is not None:
                registry.require_classes(dataset, run.card.classes, domains[name], str(run.folder))
        registry.glance(dataset, lenient=True)
    looks = {}
    with console.progress() as progress:
        for name, dataset in datasets.items():
            task = progress.add_task(name, total=min(config.images or len(dataset), len(dataset)))
            looks[name] = look(
                subjects,
                dataset,
                images=config.images,
                scenes=config.scenes,
                compare=config.compare is not None,
                advance=partial(progress.advance, task),
            )
    return looks


def render(
    runs: Sequence[Run],
    looks: Mapping[str, DomainLook],
    costs: Mapping[str, cost.ModelCost],
    *,
    compare: bool = False,
) -> str:
    """The page as HTML; with ``compare`` its tables end with the first run minus the second."""
    classes = next((run.card.classes for run in runs if run.card is not None), ())
    phases = {phase.folder.resolve(): phase for run in runs for phase in run.phases}  # shared ones once
    return page.render(
        "report.html.j2",
        title="gkd-scale: " + ", ".join(run.name for run in runs),
        runs=[{"name": run.name, "boxes": _boxes(run)} for run in runs],
        scores=score_table(runs, looks, compare=compare),
        legend=_legend(runs),
        classes=class_tables(runs, compare=compare),
        curves=[_curves(phase) for phase in phases.values()],
        looks=looks,
        confusions={name: _confusions(domain, classes) for name, domain in looks.items()},
        costs=costs,
    )


def _boxes(run: Run) -> list[dict[str, Any]]:
    """The boxes of a run's pipeline: what each training read, and what it wrote."""
    boxes: list[dict[str, Any]] = []
    for phase in run.phases:
        data = [f"{'cache ' if is_cache(location) else ''}{_short(location)}" for location in phase.data()]
        what = "student" if phase.stage == 1 else "segmentation head"
        lines = [phase.artifact, f"{len(phase.rows)} steps, {phase.seconds / 60:.1f} minutes"]
        boxes.append({"data": data, "title": phase.title, "what": what, "lines": lines})
    return boxes


def _short(location: str) -> str:
    """The end of a path or dataset name, enough to know it by."""
    adapter, colon, path = location.partition(":")
    tail = "/".join(Path(path or adapter).parts[-2:])
    return f"{adapter}:{tail}" if colon else tail


def score_table(
    runs: Sequence[Run], looks: Mapping[str, DomainLook], *, compare: bool = False
) -> dict[str, Any] | None:
    """mIoU by domain and run, its mean, and the mean's share of ``home``; None if nothing was scored.

    Scores are those of ``gkd-scale evaluate``; if it did not score a domain, those of the images looked at.
    With ``compare`` a last row is the first run minus the second.
    """
    rows = []
    for run in runs:
        if run.card is not None:
            estimates = {name: 100 * result.confusion[run.name].miou() for name, result in looks.items()}
            values = {**estimates, **{name: float(result["miou"]) for name, result in run.scores.items()}}
            rows.append((run, values, {name for name in estimates if name not in run.scores}))
    domains = list(dict.fromkeys(domain for _, values, _ in rows for domain in values))
    if not domains:
        return None
    table: list[dict[str, Any]] = []
    for run, values, partly in rows:
        home = run.card.miou if run.card else 0.0
        mean = statistics.fmean(values.values()) if values else None
        ratio = mean / home if mean is not None and home else None
        cells = [(values.get(domain), domain in partly) for domain in domains]
        table.append({"run": run.name, "home": home, "cells": cells, "mean": mean, "kept": ratio})
    if compare:
        one, other = table
        cells = [
            (_minus(mine, theirs), partly or also)
            for (mine, partly), (theirs, also) in zip(one["cells"], other["cells"], strict=True)
        ]
        rest = {key: _minus(one[key], other[key]) for key in ("home", "mean", "kept")}
        table.append({"run": _difference(runs), "cells": cells, **rest})
    return {"domains": domains, "rows": table, "partly": any(partly for _, _, partly in rows)}


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _difference(runs: Sequence[Run]) -> str:
    return f"{runs[0].name} minus {runs[1].name}"


def _legend(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Names and CSS colours of the classes of the first run that has some."""
    card = next((run.card for run in runs if run.card is not None), None)
    if card is None:
        return []
    colours = ("rgb({}, {}, {})".format(*colour) for colour in card.palette)
    return list(zip(card.classes, colours, strict=True))


def class_tables(runs: Sequence[Run], *, compare: bool = False) -> list[dict[str, Any]]:
    """IoU by class and domain, a table a run; None if a class does not occur.

    With ``compare`` a last table is the first run minus the second, of the domains that both were scored on.
    """
    tables = [
        _class_table(run.name, run.card.classes, {name: result["iou"] for name, result in run.scores.items()})
        for run in runs
        if run.scores and run.card is not None
    ]
    if compare and len(tables) == 2 and runs[0].card is not None:
        one, other = (run.scores for run in runs)
        differences = {
            domain: {
                name: _minus(value, other[domain]["iou"].get(name)) for name, value in result["iou"].items()
            }
            for domain, result in one.items()
            if domain in other
        }
        tables.append(_class_table(_difference(runs), runs[0].card.classes, differences))
    return tables


def _class_table(
    title: str, classes: Sequence[str], values: Mapping[str, Mapping[str, float | None]]
) -> dict[str, Any]:
    rows = [{"name": name, "values": [ious.get(name) for ious in values.values()]} for name in classes]
    return {"run": title, "domains": list(values), "rows": rows}


def _curves(phase: Phase) -> dict[str, Any]:
    panels = []
    for title, key, log in _CURVES:
        points = [(float(row["step"]), float(row[key])) for row in phase.rows if row.get(key) is not None]
        svg = charts.line_chart(f"{title}, {phase.title}", {title: points}, log=log)
        if svg:
            panels.append({"title": title, "svg": svg})
    return {"phase": f"{phase.title} ({phase.folder})", "charts": panels}


def _confusions(domain: DomainLook, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Confusion matrices in % of each class's pixels, a matrix a run."""
    matrices = []
    for name, confusion in domain.confusion.items():
        counts = confusion.counts[:, : confusion.classes].double()
        shares = 100 * counts / confusion.counts.sum(1, keepdim=True).clamp_min(1)
        rows = [
            {"name": class_name, "shares": share.tolist(), "pixels": int(total)}
            for class_name, share, total in zip(classes, shares, confusion.counts.sum(1), strict=True)
        ]
        matrices.append({"run": name, "classes": list(classes), "rows": rows, "miou": 100 * confusion.miou()})
    return matrices
