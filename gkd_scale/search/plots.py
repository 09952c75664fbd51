"""One HTML page: how trials learned, and which options the good ones have. Inline SVG; nothing is loaded."""

from __future__ import annotations

import html
import math
from typing import Any

from gkd_scale.report import charts
from gkd_scale.report import page as pages
from gkd_scale.search.results import Trial
from gkd_scale.search.space import Dimension, Space
from gkd_scale.search.table import format_value

WIDTH, HEIGHT, LEFT, TOP = 960, 320, 60, 30


def page(trials: list[Trial], best: Trial, importance: dict[str, float], space: Space, steps: int) -> str:
    """The whole page."""
    valid = [trial for trial in trials if trial.curve]
    low = min(value for trial in valid for _, value in trial.curve)
    high = max(value for trial in valid for _, value in trial.curve)
    note = (
        f"{len(trials)} trials; the best has mIoU {best.score:.2f} after {best.steps} steps (objective: "
        "probe on frozen patch tokens, held-in domains). Colour is mIoU: yellow is best."
    )
    by_step = "mIoU by step, a line a trial. The table below has trials that were measured only once."
    by_option = "Each line is a trial; the last axis is its newest mIoU."
    by_anova = "PED-ANOVA, trials compared at the last step that all reached."
    parts = [
        ("Learning curves", by_step, curves(valid, low, high)),
        ("Options", by_option, coordinates(valid, space, low, high)),
        ("Importance", by_anova, bars(importance)),
        ("Trials", "", listing(trials, best, steps)),
    ]
    return pages.sections(f"Search of {space.path.name}", note, parts)


def curves(trials: list[Trial], low: float, high: float) -> str:
    """mIoU over steps, a line a trial."""
    by_label = {f"trial {trial.number}, {trial.status}": trial for trial in trials}
    return charts.line_chart(
        "mIoU by step",
        {name: [(float(step), value) for step, value in trial.curve] for name, trial in by_label.items()},
        colours={name: _colour(trial, low, high) for name, trial in by_label.items()},
    )


def coordinates(trials: list[Trial], space: Space, low: float, high: float) -> str:
    """Parallel coordinates: an axis an option, and the mIoU."""
    keys = list(space.searched)
    gap = (WIDTH - 2 * LEFT) / len(keys)
    parts = []
    for i, key in enumerate(keys):
        values = space.searched[key].values
        parts.append(_axis(i * gap, format_value(values[0]), format_value(values[-1]), key))
    parts.append(_axis(len(keys) * gap, f"{low:.1f}", f"{high:.1f}", "mIoU"))
    for trial in sorted(trials, key=lambda item: item.curve[-1][1]):
        points = [
            (LEFT + i * gap, _y(position(space.searched[key], trial.config[key])))
            for i, key in enumerate(keys)
            if key in trial.config
        ]
        points.append((LEFT + len(keys) * gap, _y(_share(trial.curve[-1][1], low, high))))
        parts.append(_line(points, trial, low, high))
    return _svg("options and mIoU of each trial", parts)


def position(dimension: Dimension, value: Any) -> float:
    """Where a value lies on its axis, 0 to 1."""
    if dimension.kind == "choice":
        place = dimension.values.index(value) if value in dimension.values else 0
        return place / max(1, len(dimension.values) - 1)
    low, high = dimension.values
    if dimension.kind.startswith("log"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return _share(value, low, high)


def bars(importance: dict[str, float]) -> str:
    """A bar an option."""
    if not importance:
        return "<p>Too few trials to tell.</p>"
    rows = []
    for index, (key, value) in enumerate(importance.items()):
        y = 10 + 24 * index
        rows.append(f'<rect x="220" y="{y}" width="{600 * value:.1f}" height="16"/>')
        rows.append(_text(210, y + 13, key, "end"))
        rows.append(_text(230 + 600 * value, y + 13, f"{value:.2f}", "start"))
    return _svg("importance of each option", rows, 20 + 24 * len(importance))


def listing(trials: list[Trial], best: Trial, steps: int) -> str:
    """The table of all trials, the best first."""
    keys = list(best.config)
    names = ("trial", "status", "step", "mIoU", *keys)
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    rows = []
    for trial in sorted(trials, key=lambda item: (item.steps, item.score or 0.0), reverse=True):
        cells = [trial.cause or trial.status, f"{trial.steps}/{steps}", format_value(trial.score)]
        cells += [format_value(trial.config.get(key)) for key in keys]
        mark = ' class="best"' if trial is best else ""
        columns = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr{mark}><th scope="row">{trial.number}</th>{columns}</tr>')
    body = "".join(rows)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _y(share: float) -> float:
    return HEIGHT - TOP - share * (HEIGHT - 2 * TOP)


def _colour(trial: Trial, low: float, high: float) -> str:
    share = _share(trial.curve[-1][1], low, high)
    return f"hsl({260 - 210 * share:.0f} 75% {38 + 14 * share:.0f}%)"


def _line(points: list[tuple[float, float]], trial: Trial, low: float, high: float) -> str:
    path = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = html.escape(f"trial {trial.number}, {trial.status}")
    colour = _colour(trial, low, high)
    return f'<path d="{path}" stroke="{colour}" stroke-width="2"><title>{title}</title></path>'


def _axis(x: float, low: str, high: str, name: str) -> str:
    line = f'<path d="M{LEFT + x:.1f},{TOP} V{HEIGHT - TOP}" class="axis"/>'
    labels = ((TOP - 4, high), (HEIGHT - TOP + 13, low), (TOP - 17, name))
    return line + "".join(_text(LEFT + x, y, label) for y, label in labels)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(title: str, parts: list[str], height: int = HEIGHT) -> str:
    return (
        f'<svg class="drawing" role="img" aria-label="{html.escape(title)}" viewBox="0 0 {WIDTH} {height}">'
        + "".join(parts)
        + "</svg>"
    )
