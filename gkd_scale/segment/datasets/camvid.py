"""CamVid (Brostow et al., 2009) in the 11-class form of SegNet: 480x360 driving video frames.

Layout ``DOMAIN/{images/*.jpg,labels/*.png}``; stored values 0 to 10 are the classes, 11 is void.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter
from gkd_scale.segment.datasets.folder import IMAGES, LABELS
from gkd_scale.segment.datasets.labels import LabelSet, identity
from gkd_scale.segment.datasets.layout import Layout

_CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

ADAPTER = Adapter(
    name="camvid",
    title="CamVid, 11 classes; one folder a domain",
    labels=LabelSet(list(_CLASSES), list(_CLASSES.values())),
    layouts=(Layout(IMAGES, LABELS, identity(11, void=(11,), text="class ids, 11 void")),),
    home="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
)
