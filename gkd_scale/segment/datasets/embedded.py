"""The embedded street scenes, as ``gkd-scale make-data`` writes them.

The layout is that of the ``folder`` adapter; names and colours of the classes are the generator's.
"""

from __future__ import annotations

from gkd_scale.scenes import CLASSES, PALETTE
from gkd_scale.segment.datasets.adapter import Adapter
from gkd_scale.segment.datasets.folder import IMAGES, LABELS
from gkd_scale.segment.datasets.labels import LabelSet, identity
from gkd_scale.segment.datasets.layout import Layout

ADAPTER = Adapter(
    name="embedded",
    title="The embedded street scenes; one folder a domain",
    labels=LabelSet(CLASSES, PALETTE),
    layouts=(Layout(IMAGES, LABELS, identity(len(CLASSES))),),
    home="gkd-scale make-data OUT",
    missing_hint="'gkd-scale make-data OUT' writes the embedded scenes",
)
