"""Cityscapes (Cordts et al., 2016): 2048x1024 frames of 50 cities, and the 19 classes that others share.

``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``; if those are
missing, ``*_gtFine_labelTrainIds.png``. Labels of the test split are void. Ids and colours are those of
``cityscapesscripts/helpers/labels.py``.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, Part
from gkd_scale.segment.datasets.labels import Encoding, LabelSet, identity
from gkd_scale.segment.datasets.layout import Layout
from gkd_scale.types import IGNORE

_CLASSES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}

LABELS_19 = LabelSet(list(_CLASSES), [colour for _, colour in _CLASSES.values()])
"""The 19 classes of Cityscapes; gtav, synthia, urbansyn, bdd100k, mapillary and acdc have them too."""

IDS = {
    **dict.fromkeys(range(35), IGNORE),
    **{label_id: train for train, (label_id, _) in enumerate(_CLASSES.values())},
}
"""Label ids 0 to 34 to train ids; those outside the 19 classes are void."""

TRAIN_IDS = identity(19, text="train ids")

ADAPTER = Adapter(
    name="cityscapes",
    title="Cityscapes",
    labels=LABELS_19,
    layouts=(
        Layout(
            "leftImg8bit/{part}/*/*_leftImg8bit",
            "gtFine/{part}/*/*_gtFine_labelIds",
            Encoding(IDS, text="label ids 0 to 34"),
        ),
        Layout(
            "leftImg8bit/{part}/*/*_leftImg8bit",
            "gtFine/{part}/*/*_gtFine_labelTrainIds",
            TRAIN_IDS,
        ),
    ),
    parts={"train": Part("train", 2975), "val": Part("val", 500), "test": Part("test", 1525)},
    home="https://www.cityscapes-dataset.com",
)
