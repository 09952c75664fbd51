"""``ADAPTER:PATH`` to a dataset.

To add one: write ``gkd_scale/segment/datasets/NAME.py`` with ``open_dataset(root: Path) ->
SegDataset``, name it in :data:`ADAPTERS`, and test it on a miniature in the official layout.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from gkd_scale.errors import ConfigError, DataError, nearest
from gkd_scale.prefetch import prefetch
from gkd_scale.types import SegDataset, SegSample

ADAPTERS = {
    "cache": "gkd_scale.segment.datasets.cache",
    "camvid": "gkd_scale.segment.datasets.camvid",
    "embedded": "gkd_scale.segment.datasets.embedded",
    "folder": "gkd_scale.segment.datasets.folder",
}
"""Adapter names to the modules that hold their ``open_dataset(root)``."""


def parse(ref: str) -> tuple[str, Path]:
    """``"camvid:some/folder"`` to its adapter and path; ConfigError with the nearest adapter's name."""
    adapter, colon, path = ref.partition(":")
    if not colon or not path:
        raise ConfigError(
            f"'{ref}' is not ADAPTER:PATH", f"adapters: {', '.join(ADAPTERS)}; for example folder:my/data"
        )
    if adapter not in ADAPTERS:
        raise ConfigError(
            f"'{ref}': there is no dataset adapter '{adapter}'",
            nearest(adapter, ADAPTERS) or f"adapters: {', '.join(ADAPTERS)}",
        )
    return adapter, Path(path).expanduser()


def open_dataset(ref: str) -> SegDataset:
    """Open ``ADAPTER:PATH``; DataError where the files do not fit together."""
    adapter, path = parse(ref)
    opener = cast(Callable[[Path], SegDataset], importlib.import_module(ADAPTERS[adapter]).open_dataset)
    return opener(path)


def open_all(refs: Sequence[str]) -> SegDataset:
    """Several datasets with one class list as one; DataError where their classes differ."""
    opened = [open_dataset(ref) for ref in refs]
    for ref, other in zip(refs, opened, strict=True):
        require_classes(other, opened[0].classes, ref, refs[0])
    return opened[0] if len(opened) == 1 else Concatenated(opened)


def require_classes(dataset: SegDataset, classes: Sequence[str], ref: str, wanted_by: str) -> None:
    """DataError unless ``dataset`` has exactly ``classes``, in that order; names the first difference."""
    if list(dataset.classes) == list(classes):
        return
    where = next(
        (
            f"class {i} is '{mine}' there and '{theirs}' here"
            for i, (mine, theirs) in enumerate(zip(dataset.classes, classes, strict=False))
            if mine != theirs
        ),
        f"{len(dataset.classes)} classes there and {len(classes)} here",
    )
    raise DataError(
        f"{ref} and {wanted_by} have different classes: {where}",
        "use datasets of one label set; for 'folder' give both the same classes.txt",
    )


class Concatenated:
    """Datasets of one class list, one behind the other."""

    def __init__(self, parts: Sequence[SegDataset]) -> None:
        self.name = "+".join(part.name for part in parts)
        self.classes = parts[0].classes
        self.palette = parts[0].palette
        self._parts = [(part, index) for part in parts for index in range(len(part))]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> SegSample:
        part, inner = self._parts[index]
        return part[inner]


def check(dataset: SegDataset, workers: int, advance: Callable[[], object] = lambda: None) -> None:
    """Read every sample once, so that a bad file ends the run before training; raises its DataError."""
    for _ in prefetch(lambda index: dataset[index] is None, range(len(dataset)), workers, 4 * workers):
        advance()
