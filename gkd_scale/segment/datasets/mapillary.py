"""Mapillary Vistas v1.2 (Neuhold et al., 2017): photographs of streets all over the world, sizes vary.

``{training,validation}/images/*.jpg`` with ``.../labels/*.png``, or with ``.../v1.2/labels/*.png`` as version
2.0 ships them: 66 ids, which become the 19 classes of Cityscapes. The testing split has no labels.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, Part
from gkd_scale.segment.datasets.cityscapes import LABELS_19
from gkd_scale.segment.datasets.labels import Encoding
from gkd_scale.segment.datasets.layout import Layout
from gkd_scale.types import IGNORE

TO_19 = {
    "road": (7, 8, 10, 13, 14, 23, 24),
    "sidewalk": (2, 9, 11, 15),
    "building": (17,),
    "wall": (6,),
    "fence": (3,),
    "pole": (44, 45, 47),
    "traffic light": (48,),
    "traffic sign": (46, 49, 50),
    "vegetation": (30,),
    "terrain": (29,),
    "sky": (27,),
    "person": (19,),
    "rider": (20, 21, 22),
    "car": (55,),
    "truck": (61,),
    "bus": (54,),
    "train": (58,),
    "motorcycle": (57,),
    "bicycle": (52,),
}
"""The ids of version 1.2 that each class is made of; the other ids of the 66 are void."""

_ENCODING = Encoding(
    {
        **dict.fromkeys(range(66), IGNORE),
        **{label_id: train for train, name in enumerate(LABELS_19.classes) for label_id in TO_19[name]},
    },
    text="66 ids of version 1.2",
)

ADAPTER = Adapter(
    name="mapillary",
    title="Mapillary Vistas v1.2",
    labels=LABELS_19,
    layouts=(
        Layout("{part}/images/*", "{part}/labels/*", _ENCODING),
        Layout("{part}/images/*", "{part}/v1.2/labels/*", _ENCODING),
    ),
    parts={"train": Part("training", 18000), "val": Part("validation", 2000)},
    home="https://www.mapillary.com/dataset/vistas",
)
