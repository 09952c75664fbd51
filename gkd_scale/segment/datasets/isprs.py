"""Potsdam and Vaihingen (ISPRS 2D Semantic Labeling): aerial images at 5 and 9 cm, as crops of 512 pixels.

The originals are a few large GeoTIFFs; ``gkd-scale datasets convert potsdam`` (or ``vaihingen``) cuts
them. Potsdam comes in two colour spaces, RGB and IRRG (infrared, red, green), as
``{RGB,IRRG}/{img_dir,ann_dir}/{train,val}/*.png``; Vaihingen is IRRG, ``{img_dir,ann_dir}/{train,val}``.

Labels are RGB in the colours of the originals, or indices as MMSegmentation's converter and ours write them:
0 boundary (ignored), then the six classes from 1.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def _crops(prefix: str, encoding: Encoding) -> tuple[Layout]:
    return (Layout(f"{prefix}img_dir/{{part}}/*", f"{prefix}ann_dir/{{part}}/*", encoding),)


POTSDAM_RGB = Adapter(
    name="potsdam_rgb",
    title="ISPRS Potsdam, RGB, crops of 512",
    labels=LABELS_6,
    layouts=_crops("RGB/", ENCODING_6),
    parts=_POTSDAM,
    home=_HOME,
)
POTSDAM_IRRG = Adapter(
    name="potsdam_irrg",
    title="ISPRS Potsdam, infrared-red-green, crops of 512",
    labels=LABELS_6,
    layouts=_crops("IRRG/", ENCODING_6),
    parts=_POTSDAM,
    home=_HOME,
)
POTSDAM_RGB_5 = Adapter(
    name="potsdam_rgb_5",
    title="ISPRS Potsdam, RGB, in RescueNet's five classes",
    labels=LABELS_5,
    layouts=_crops("RGB/", _ENCODING_5),
    parts=_POTSDAM,
    home=_HOME,
)
VAIHINGEN_IRRG = Adapter(
    name="vaihingen_irrg",
    title="ISPRS Vaihingen, infrared-red-green, crops of 512",
    labels=LABELS_6,
    layouts=_crops("", ENCODING_6),
    parts={"train": Part("train", 344), "val": Part("val", 398)},
    home=_HOME,
)
