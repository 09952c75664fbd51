"""``gkd-scale datasets check``: the contents of a dataset's folder, and what is missing or wrong.

The check does not stop at the first fault: it reads every pair of every part and lists the faults. A part
without any files is no fault (few users need all parts), but is listed too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from gkd_scale import console
from gkd_scale.errors import DataError
from gkd_scale.prefetch import prefetch
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.datasets.adapter import Adapter
from gkd_scale.segment.datasets.config import CheckConfig
from gkd_scale.segment.datasets.labels import (
    Encoding,
    image_size,
    read_image,
    read_stored,
    require_same_size,
)
from gkd_scale.segment.datasets.layout import Pair, require_partners
from gkd_scale.segment.datasets.plausible import Evidence, findings
from gkd_scale.types import IGNORE, Int64Array, Size

_LIMIT = 5


@dataclass
class PartReport:
    """One part. ``pixels`` and ``image_counts`` count each class's pixels, and the images that show it."""

    domain: str
    expected: int | None
    classes: Sequence[str] = ()
    pairs: int = 0
    left_out: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    pixels: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    image_counts: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    void: int = 0
    absent: bool = False

    @property
    def total(self) -> int:
        """All pixels, void included; at least 1."""
        return max(1, int(self.pixels.sum()) + self.void)

    def notes(self) -> list[str]:
        """Remarks that are no faults."""
        if self.absent:
            return [f"nothing is there{f' ({self.expected} pairs)' if self.expected is not None else ''}"]
        notes = [f"{path} is left out: known to be bad as published" for path in self.left_out]
        if self.expected is not None and self.pairs != self.expected:
            word = "missing" if self.pairs < self.expected else "more than published"
            notes.append(f"{abs(self.expected - self.pairs)} of {self.expected} pairs {word}")
        never = [name for name, count in zip(self.classes, self.pixels, strict=True) if not count]
        if never:
            notes.append(f"no pixel of {', '.join(never)}")
        return notes + self.doubts

    def to_dict(self) -> dict[str, Any]:
        """JSON types; ``share`` is of all pixels, void included."""
        return {
            "domain": self.domain,
            "pairs": self.pairs,
            "expected": self.expected,
            "sizes": dict(self.sizes.most_common()),
            "classes": {
                name: {"pixels": int(pixels), "share": pixels / self.total, "images": int(images)}
                for name, pixels, images in zip(self.classes, self.pixels, self.image_counts, strict=True)
            },
            "void_share": self.void / self.total,
            "notes": self.notes(),
            "faults": self.faults,
        }


def main(cfg: CheckConfig) -> int:
    """``gkd-scale datasets check``: print the reports; 1 if a file is wrong or has no partner, else 0."""
    reports = check(cfg)
    if cfg.json:
        print(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        for report in reports:
            show(report)
    return int(any(report.faults for report in reports))


def check(config: CheckConfig) -> list[PartReport]:
    """Check every pair of the part that ``config`` names, or of all parts.

    Raises ConfigError for an unknown adapter or part, DataError if the folder does not exist or is empty;
    faults of single files go into the reports.
    """
    adapter = registry.adapter_of(config.name)
    ref = registry.split(adapter, config.path)
    single = bool(ref.part) or "" in adapter.parts
    present = [ref.part] if single else adapter.present(ref.path, any)
    reports = []
    with console.progress(disable=config.json) as progress:
        for part in present or [next(iter(adapter.parts))]:
            task = progress.add_task(part or config.name, total=None)

            def advance(total: int, task: Any = task) -> None:
                progress.update(task, total=total, advance=1)

            try:
                reports.append(_check_part(adapter, ref.path, part, config, advance))
            except DataError as error:
                if len(present) < 2:
                    raise
                reports.append(_report(adapter, part, faults=[error.message]))
    absent = [] if single else [part for part in adapter.parts if part not in present]
    return reports + [_report(adapter, part, absent=True) for part in absent]


def _report(adapter: Adapter, part: str, **fields: Any) -> PartReport:
    return PartReport(f"{adapter.name}/{part}" if part else adapter.name, adapter.part(part).images, **fields)


def _check_part(
    adapter: Adapter, root: Path, part: str, config: CheckConfig, advance: Callable[[int], None]
) -> PartReport:
    files = adapter.find(root, part)
    if files.lonely and not files.pairs:
        require_partners(files)
    labels, encoding = adapter.meaning(root, files)
    evidence = Evidence(encoding, labels.classes)
    never = adapter.never(root)
    report = _report(
        adapter,
        part,
        classes=labels.classes,
        pairs=len(files.pairs),
        left_out=[str(path) for path in files.left_out],
        faults=[str(lonely) for lonely in files.lonely],
        pixels=np.zeros(len(labels.classes), np.int64),
        image_counts=np.zeros(len(labels.classes), np.int64),
    )

    def look(pair: Pair) -> tuple[Size, Int64Array] | str:
        try:
            return _look(pair, encoding, evidence, config.decode)
        except DataError as error:
            return error.message

    for result in prefetch(look, files.pairs, config.workers, 4 * config.workers):
        advance(len(files.pairs))
        if isinstance(result, str):
            report.faults.append(result)
            continue
        (height, width), counts = result
        report.sizes[f"{height}x{width}"] += 1
        report.void += int(counts[IGNORE])
        report.pixels += counts[: len(labels.classes)]
        report.image_counts += counts[: len(labels.classes)] > 0
    report.faults += [
        f"labels hold '{name}', which is said to occur in none"
        for name, pixels in zip(labels.classes, report.pixels, strict=True)
        if pixels and name in never
    ]
    for finding in findings(evidence):
        (report.faults if finding.error else report.doubts).append(str(finding))
    return report


def _look(pair: Pair, encoding: Encoding, evidence: Evidence, decode: bool) -> tuple[Size, Int64Array]:
    """The size of a pair, and the pixels of each train id, (256,)."""
    image_path, label_path = pair
    raw = read_stored(label_path)
    evidence.look(raw, label_path)
    label = encoding.decode(raw, label_path)
    size = read_image(image_path).shape[:2] if decode else image_size(image_path)
    require_same_size(size, label.shape, pair)
    return (size[0], size[1]), np.bincount(label.ravel(), minlength=IGNORE + 1)


def show(report: PartReport) -> None:
    """Print a report: classes, sizes, notes, faults."""
    if report.absent:
        console.out.print(f"{report.domain}: {report.notes()[0]}", markup=False, style="dim")
        return
    table = Table(title=f"{report.domain}: {report.pairs} pairs")
    for name in ("class", "% of pixels", "images"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, pixels, images in zip(report.classes, report.pixels, report.image_counts, strict=True):
        table.add_row(name, f"{100 * pixels / report.total:.3f}", str(images))
    table.add_section()
    table.add_row("void", f"{100 * report.void / report.total:.3f}", "", style="dim")
    console.out.print(table)
    sizes = report.sizes.most_common(_LIMIT)
    more = f", {len(report.sizes) - len(sizes)} other sizes" if len(report.sizes) > len(sizes) else ""
    lines = ["sizes (HxW): " + ", ".join(f"{size} ({count})" for size, count in sizes) + more]
    lines += report.notes()
    lines += [f"fault: {fault}" for fault in report.faults[:_LIMIT]]
    if len(report.faults) > _LIMIT:
        lines.append(f"... and {len(report.faults) - _LIMIT} more faults; --json lists all")
    console.say(*lines, f"{len(report.faults)} faults")
