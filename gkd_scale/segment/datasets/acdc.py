"""ACDC (Sakaridis et al., 2021): 1920x1080 frames in four adverse conditions, each a domain of its own.

``rgb_anon/CONDITION/SPLIT/SEQUENCE/*_rgb_anon.png`` with
``gt/CONDITION/SPLIT/SEQUENCE/*_gt_labelTrainIds.png``. The test split has no public labels.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, Part
from gkd_scale.segment.datasets.cityscapes import LABELS_19, TRAIN_IDS
from gkd_scale.segment.datasets.layout import Layout

_TRAIN = {"fog": 400, "night": 400, "rain": 400, "snow": 400}
_VAL = {"fog": 100, "night": 106, "rain": 100, "snow": 100}

ADAPTER = Adapter(
    name="acdc",
    title="ACDC: fog, night, rain, snow",
    labels=LABELS_19,
    layouts=(Layout("rgb_anon/{part}/*/*_rgb_anon", "gt/{part}/*/*_gt_labelTrainIds", TRAIN_IDS),),
    parts={
        f"{condition}/{split}": Part(f"{condition}/{split}", images)
        for split, counts in (("train", _TRAIN), ("val", _VAL))
        for condition, images in counts.items()
    },
    home="https://acdc.vision.ee.ethz.ch",
)
