"""UrbanSyn (Gómez et al., 2023): 7539 synthetic 2048x1024 frames.

``rgb/rgb_NNNN.png`` with ``ss/ss_NNNN.png``, which hold train ids; 19 is void.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, with_held_out
from gkd_scale.segment.datasets.cityscapes import LABELS_19
from gkd_scale.segment.datasets.labels import identity
from gkd_scale.segment.datasets.layout import Layout

ADAPTER = Adapter(
    name="urbansyn",
    title="UrbanSyn, synthetic",
    labels=LABELS_19,
    layouts=(Layout("rgb/rgb_*", "ss/ss_*", identity(19, void=(19,), text="train ids, 19 void")),),
    parts=with_held_out(7539),
    home="https://www.urbansyn.org",
)
