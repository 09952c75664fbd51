"""The embedded street scenes, as ``gkd-scale make-data`` writes them.

The layout is that of the ``folder`` adapter; names and colours of the classes are the generator's.
"""

from __future__ import annotations

from pathlib import Path

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.folder import FolderDataset, LabelSet
from gkd_scale.segment.datasets.scenes import CLASSES, PALETTE


def open_dataset(root: Path) -> FolderDataset:
    """One domain's folder, for example ``embedded:runs/demo-data/source/train``."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", "'gkd-scale make-data OUT' writes the embedded scenes")
    return FolderDataset(root, LabelSet(CLASSES, PALETTE))
