"""The page that reports share: one HTML file with a style, light and dark, and tables that sort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gkd_scale import __version__
from gkd_scale.report import charts

Section = tuple[str, str, str]
"""A heading, a note in plain text (or none), and HTML."""


def render(template: str, **values: Any) -> str:
    """A template of this package as HTML; text in ``values`` is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    env = Environment(
        loader=PackageLoader("gkd_scale.report", "."), autoescape=True, undefined=StrictUndefined
    )
    env.filters["number"] = charts.number
    env.filters["score"] = score
    return env.get_template(template).render(version=__version__, **values)


def sections(title: str, note: str, parts: Sequence[Section]) -> str:
    """A page of sections one after the other."""
    return render("sections.html.j2", title=title, note=note, sections=parts)


def score(value: float | None, digits: int = 1) -> str:
    """A number of ``digits`` decimals; – for None and for a value that is not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
