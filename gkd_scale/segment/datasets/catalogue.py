"""``gkd-scale datasets``: which datasets there are, and where to get them."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from gkd_scale.segment.datasets.adapter import Adapter
from gkd_scale.segment.datasets.registry import ADAPTERS


def entries() -> list[dict[str, Any]]:
    """One JSON object an adapter."""
    return [
        {
            "name": adapter.name,
            "title": adapter.title,
            "classes": list(adapter.labels.classes),
            "absent": list(adapter.absent),
            "parts": {name: part.images for name, part in adapter.parts.items()},
            "layouts": [{"images": each.images, "labels": each.labels} for each in adapter.layouts],
            "encoding": adapter.layouts[0].encoding.text,
            "home": adapter.home,
        }
        for adapter in ADAPTERS.values()
    ]


def table() -> Table:
    """The adapters for a terminal."""
    shown = Table(title="Datasets: ADAPTER:PATH or ADAPTER:PATH@PART", show_lines=True)
    for column in ("adapter", "what, and where to get it", "parts (images)", "classes", "files", "labels"):
        shown.add_column(column, overflow="fold", no_wrap=column == "adapter")
    for adapter in ADAPTERS.values():
        classes = str(len(adapter.labels.classes) or "any")
        if adapter.absent:
            classes += f", without {', '.join(adapter.absent)}"
        layout = adapter.layouts[0]
        shown.add_row(
            adapter.name,
            f"{adapter.title}\n{adapter.home}".strip(),
            _parts(adapter),
            classes,
            f"{layout.images}\n{layout.labels}",
            layout.encoding.text,
        )
    return shown


def _parts(adapter: Adapter) -> str:
    counts = {name: part.images for name, part in adapter.parts.items()}
    return "\n".join(
        f"{'@' + name if name else 'all'}" + ("" if images is None else f" ({images})")
        for name, images in counts.items()
    )
