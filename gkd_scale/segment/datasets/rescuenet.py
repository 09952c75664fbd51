"""RescueNet (Rahnemoonfar et al., 2023): 4494 drone photographs after a hurricane, 4000x3000.

``SPLIT/SPLIT-org-img/*.jpg`` with ``SPLIT/SPLIT-label-img/*_lab.png``: ids 0 background, 1 water, 2 to 5
building by damage, 6 vehicle, 7 road clear, 8 road blocked, 9 tree, 10 pool. Here they are the five classes
in common with Potsdam (our reading of the paper, which does not list them): a model for it is trained on
``potsdam_rgb_5``.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, Part
from gkd_scale.segment.datasets.isprs import LABELS_5
from gkd_scale.segment.datasets.labels import Encoding
from gkd_scale.segment.datasets.layout import Layout

_IMPERVIOUS, _BUILDING, _VEGETATION, _CAR, _CLUTTER = range(5)

IDS = {
    **dict.fromkeys((7, 8), _IMPERVIOUS),
    **dict.fromkeys((2, 3, 4, 5), _BUILDING),
    9: _VEGETATION,
    6: _CAR,
    **dict.fromkeys((0, 1, 10), _CLUTTER),
}

ADAPTER = Adapter(
    name="rescuenet",
    title="RescueNet, five classes in common with Potsdam",
    labels=LABELS_5,
    layouts=(
        Layout(
            "{part}/{part}-org-img/*",
            "{part}/{part}-label-img/*_lab",
            Encoding(IDS, text="11 ids"),
        ),
    ),
    parts={"train": Part("train", 3595), "val": Part("val", 449), "test": Part("test", 450)},
    home="https://doi.org/10.1038/s41597-023-02799-4",
)
