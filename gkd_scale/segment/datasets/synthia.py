"""SYNTHIA-RAND-CITYSCAPES (Ros et al., 2016): 9400 synthetic 1280x760 frames.

``RGB/*.png`` with ``GT/LABELS/*.png``, PNGs of several 16-bit channels with the class id in the first. The
path is that of ``RAND_CITYSCAPES``. Three of the 19 classes occur in no label: results of a model that
learned from SYNTHIA alone are over the other 16.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, with_held_out
from gkd_scale.segment.datasets.cityscapes import LABELS_19
from gkd_scale.segment.datasets.labels import Encoding
from gkd_scale.segment.datasets.layout import Layout
from gkd_scale.types import IGNORE

IDS = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 10, 10: 11, 17: 12, 8: 13, 19: 15, 12: 17}
IDS |= {11: 18}
VOID = (0, 13, 14, 16, 18, 20, 22)
"""Void, parking slot, road work, lane marking, and three classes that occur nowhere."""

ADAPTER = Adapter(
    name="synthia",
    title="SYNTHIA-RAND-CITYSCAPES, synthetic",
    labels=LABELS_19,
    layouts=(
        Layout(
            "RGB/*",
            "GT/LABELS/*",
            Encoding({**IDS, **dict.fromkeys(VOID, IGNORE)}, channel=0, text="16-bit PNG, ids in channel 0"),
        ),
    ),
    parts=with_held_out(9400),
    home="https://synthia-dataset.net",
    absent=("terrain", "truck", "train"),
)
