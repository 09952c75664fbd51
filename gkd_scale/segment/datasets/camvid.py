"""CamVid (Brostow et al., 2009) in the 11-class form of SegNet: 480x360 driving video frames.

Layout ``DOMAIN/{images/*.jpg,labels/*.png}``; stored values 0 to 10 are the classes, 11 is void.
"""

from __future__ import annotations

from pathlib import Path

from gkd_scale.segment.datasets.folder import FolderDataset, LabelSet
from gkd_scale.types import IGNORE

LABELS = LabelSet(
    classes=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    remap={11: IGNORE},
)


def open_dataset(root: Path) -> FolderDataset:
    """One domain's folder, for example ``camvid:data/camvid/source_day``."""
    return FolderDataset(root, LABELS)
