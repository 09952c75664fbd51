"""GTAV, "Playing for Data" (Richter et al., 2016): 24966 frames of a game, about 1914x1052.

``images/*.png`` with ``labels/*.png``: palette PNGs whose indices are the label ids of Cityscapes. Labels
stored as RGB are read by the colours of Cityscapes. Two images, 15188 and 17705, are published at another
size than their labels and left out.
"""

from __future__ import annotations

from gkd_scale.segment.datasets.adapter import Adapter, with_held_out
from gkd_scale.segment.datasets.cityscapes import IDS, LABELS_19
from gkd_scale.segment.datasets.folder import IMAGES, LABELS
from gkd_scale.segment.datasets.labels import Colour, Encoding
from gkd_scale.segment.datasets.layout import Layout
from gkd_scale.types import IGNORE

_VOID: tuple[Colour, ...] = (
    (0, 0, 0),  # unlabelled, ego vehicle, border, out of roi, static
    (111, 74, 0),  # dynamic
    (81, 0, 81),  # ground
    (250, 170, 160),  # parking
    (230, 150, 140),  # rail track
    (180, 165, 180),  # guard rail
    (150, 100, 100),  # bridge
    (150, 120, 90),  # tunnel
    (0, 0, 90),  # caravan
    (0, 0, 110),  # trailer
)
_COLOURS = {
    **dict.fromkeys(_VOID, IGNORE),
    **{colour: train for train, colour in enumerate(LABELS_19.palette)},
}

ADAPTER = Adapter(
    name="gtav",
    title="GTAV (Playing for Data), synthetic",
    labels=LABELS_19,
    layouts=(Layout(IMAGES, LABELS, Encoding(IDS, _COLOURS, text="palette PNG of Cityscapes ids")),),
    parts=with_held_out(24966 - 2),
    home="https://download.visinf.tu-darmstadt.de/data/from_games/",
    skip=frozenset({("15188",), ("17705",)}),
)
