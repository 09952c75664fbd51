"""``gkd-scale datasets``: the known datasets, and where to get them."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from gkd_scale import console
from gkd_scale.segment.datasets.adapter import Adapter
from gkd_scale.segment.datasets.config import DatasetsConfig
from gkd_scale.segment.datasets.registry import ADAPTERS


def main(cfg: DatasetsConfig) -> None:
    """``gkd-scale datasets``: print the adapters, as a table or as JSON."""
    if cfg.json:
        print(json.dumps(entries(), indent=2))
        return
    console.out.print(table())
    console.say(*map(_place, ADAPTERS.values()))


def entries() -> list[dict[str, Any]]:
    """One JSON object an adapter."""
    return [
        {
            "name": adapter.name,
            "title": adapter.title,
            "classes": list(adapter.labels.classes),
            "absent": list(adapter.absent),
            "parts": {name: part.images for name, part in adapter.parts.items()},
            "layouts": [{"images": layout.images, "labels": layout.labels} for layout in adapter.layouts],
            "encoding": adapter.layouts[0].encoding.text,
            "home": adapter.home,
        }
        for adapter in ADAPTERS.values()
    ]


def table() -> Table:
    """The adapters for a terminal."""
    grid = Table(title="Datasets: ADAPTER:PATH or ADAPTER:PATH@PART")
    grid.add_column("adapter", no_wrap=True)
    for column in ("what", "parts (images)", "classes", "labels"):
        grid.add_column(column)
    for adapter in ADAPTERS.values():
        classes = str(len(adapter.labels.classes) or "any")
        if adapter.absent:
            classes += f", without {', '.join(adapter.absent)}"
        grid.add_row(adapter.name, adapter.title, _parts(adapter), classes, adapter.layouts[0].encoding.text)
    return grid


def _parts(adapter: Adapter) -> str:
    return ", ".join(
        (f"@{name}" if name else "all") + ("" if part.images is None else f" {part.images}")
        for name, part in adapter.parts.items()
    )


def _place(adapter: Adapter) -> str:
    """A line: the files below PATH, with one part as an example, and where to get them."""
    folder = next((part.folder for part in adapter.parts.values() if part.folder), "")
    layout = adapter.layouts[0]
    images, labels = (pattern.format(part=folder) for pattern in (layout.images, layout.labels))
    return f"{adapter.name}: {images}.* and {labels}.png" + (adapter.home and f"; from {adapter.home}")
