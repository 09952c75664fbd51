"""BDD100K (Yu et al., 2020), the 10k images with semantic labels: 1280x720 frames of the United States.

``images/10k/SPLIT/*.jpg`` with ``labels/sem_seg/masks/SPLIT/*.png``; older archives have
``seg/images/SPLIT/*.jpg`` with ``seg/labels/SPLIT/*_train_id.png``. Both hold train ids. The test split has
no public labels.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, Part
from gkd_scale.segment.datasets.cityscapes import LABELS_19, TRAIN_IDS
from gkd_scale.segment.datasets.layout import Layout

ADAPTER = Adapter(
    name="bdd100k",
    title="BDD100K, 10k images",
    labels=LABELS_19,
    layouts=(
        Layout("images/10k/{part}/*", "labels/sem_seg/masks/{part}/*", TRAIN_IDS),
        Layout("seg/images/{part}/*", "seg/labels/{part}/*_train_id", TRAIN_IDS),
    ),
    parts={"train": Part("train", 7000), "val": Part("val", 1000)},
    home="https://bdd-data.berkeley.edu",
)
