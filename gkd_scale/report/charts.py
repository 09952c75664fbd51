"""Line charts as SVG in the page's own colours, so that they follow its light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 420.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 8.0, 8.0, 26.0
_LARGEST = 1e100
_MOST = 400
"""Points drawn of a curve: more would not be seen."""


def line_chart(
    title: str, curves: Mapping[str, Points], *, log: bool = False, colours: Mapping[str, str] | None = None
) -> str:
    """Curves of (step, value) as an SVG; the empty string if no curve has two points.

    ``colours`` by curve replace the page's own. Values beyond 1e100 and those that are not numbers are left
    out, with ``log`` those that are not positive.
    """
    visible = {name: sample for name, points in curves.items() if len(sample := _thin(points, log)) > 1}
    if not visible:
        return ""
    every = [point for points in visible.values() for point in points]
    xs, ys = [x for x, _ in every], [math.log10(y) if log else y for _, y in every]
    low, high = min(ys), max(ys)
    if high == low:
        low, high = low - 1, high + 1
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first)
        up = ((math.log10(y) if log else y) - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    box = f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}"
    parts = [f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(title)}">']
    for tick in (0.0, 0.5, 1.0):
        value = low + tick * (high - low)
        y = _HEIGHT - _BOTTOM - tick * (_HEIGHT - _TOP - _BOTTOM)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = number(10**value if log else value)
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for x, anchor in ((first, "start"), (last, "end")):
        across = _LEFT if anchor == "start" else _WIDTH - _RIGHT
        parts.append(f'<text x="{across}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{number(x)}</text>')
    for index, (name, points) in enumerate(visible.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        colour = f' style="stroke: {escape(colours[name])}"' if colours else ""
        parts.append(
            f'<polyline class="curve c{index % 6}"{colour} points="{path}"><title>{escape(name)}: '
            f"{number(points[-1][1])} at step {number(points[-1][0])}</title></polyline>"
        )
    return "".join([*parts, "</svg>"])


def number(value: float) -> str:
    """Three significant digits, without an exponent if people would not write one."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _thin(points: Points, log: bool) -> list[tuple[float, float]]:
    good = [(x, y) for x, y in points if abs(y) <= _LARGEST and (not log or y > 0)]
    step = max(1, -(-len(good) // _MOST))
    sample = good[::step]
    return sample if not good or sample[-1] == good[-1] else [*sample, good[-1]]
