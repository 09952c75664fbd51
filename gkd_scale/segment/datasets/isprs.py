"""Potsdam and Vaihingen (ISPRS 2D Semantic Labeling): aerial images at 5 and 9 cm, as crops of 512 pixels.

The originals are a few large GeoTIFFs; ``gkd-scale datasets convert potsdam`` (or ``vaihingen``) cuts
them. Potsdam comes in two colour spaces, RGB and IRRG (infrared, red, green), as
``{RGB,IRRG}/{img_dir,ann_dir}/{train,val}/*.png``; Vaihingen is IRRG, ``{img_dir,ann_dir}/{train,val}``.

Labels are RGB in the colours of the originals, or indices as MMSegmentation's converter and ours write them:
0 boundary (ignored), then the six classes from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gkd_scale.segment.datasets.adapter import Adapter, Part
from gkd_scale.segment.datasets.labels import Colour, Encoding, LabelSet
from gkd_scale.segment.datasets.layout import Layout
from gkd_scale.types import IGNORE

BOUNDARY: Colour = (0, 0, 0)

_CLASSES: dict[str, Colour] = {
    "impervious surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}

LABELS_6 = LabelSet(list(_CLASSES), list(_CLASSES.values()))

LABELS_5 = LabelSet(
    ("impervious surface", "building", "vegetation", "car", "clutter"),
    tuple(_CLASSES[name] for name in ("impervious surface", "building", "tree", "car", "clutter")),
)
"""The classes that Potsdam and RescueNet have in common: low vegetation and tree are one."""


def _encoding(train_ids: Sequence[int]) -> Encoding:
    """The six stored classes to ``train_ids``, from colours or from indices that start at 1."""
    return Encoding(
        {0: IGNORE, **{index + 1: train for index, train in enumerate(train_ids)}},
        {BOUNDARY: IGNORE, **dict(zip(_CLASSES.values(), train_ids, strict=True))},
        text="six colours, or ids from 1",
    )


ENCODING_6 = _encoding(range(6))
_ENCODING_5 = _encoding((0, 1, 2, 2, 3, 4))
_HOME = "https://www.isprs.org/education/benchmarks/UrbanSemLab/"
_POTSDAM = {"train": Part("train", 3456), "val": Part("val", 2016)}
_VAIHINGEN = {"train": Part("train", 344), "val": Part("val", 398)}


def _adapter(
    name: str, title: str, folder: str, parts: Mapping[str, Part], classes: LabelSet, encoding: Encoding
) -> Adapter:
    layout = Layout(f"{folder}img_dir/{{part}}/*", f"{folder}ann_dir/{{part}}/*", encoding)
    return Adapter(name, f"ISPRS {title}", classes, (layout,), parts, _HOME)


POTSDAM_RGB = _adapter("potsdam_rgb", "Potsdam, RGB, crops of 512", "RGB/", _POTSDAM, LABELS_6, ENCODING_6)
POTSDAM_IRRG = _adapter(
    "potsdam_irrg", "Potsdam, infrared-red-green, crops of 512", "IRRG/", _POTSDAM, LABELS_6, ENCODING_6
)
POTSDAM_RGB_5 = _adapter(
    "potsdam_rgb_5", "Potsdam, RGB, in RescueNet's five classes", "RGB/", _POTSDAM, LABELS_5, _ENCODING_5
)
VAIHINGEN_IRRG = _adapter(
    "vaihingen_irrg", "Vaihingen, infrared-red-green, crops of 512", "", _VAIHINGEN, LABELS_6, ENCODING_6
)
