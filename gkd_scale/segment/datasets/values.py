"""Explains label values that are no class ids, from the values alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gkd_scale.types import IGNORE, Int64Array

MANY = 100
"""This many values are no class ids."""
_FAR = 11
_LABEL_IDS = 35
"""Label ids of Cityscapes are below this."""


def unknown_values(pixels: Int64Array, classes: int, text: str) -> tuple[str, str] | None:
    """Why one label's values are not those of ``classes`` ids, and what to do; None if they do not tell.

    ``pixels`` (256,) counts each value; ``text`` says which ids are expected.
    """
    values = [value for value in range(IGNORE) if pixels[value]]
    if not values:
        return None
    if values[0] == 1 and values[-1] == classes:
        return (
            f"its values count from 1 to {classes}",
            "subtract 1 from all, or name what 0 is in the first line of the class list (classes.txt)",
        )
    if values[0] == 0 and values[-1] == classes:
        return (
            f"its values count from 0 to {classes}",
            "name what 0 is in the first line of the class list (classes.txt); if 0 is void (as in ADE20K), "
            "subtract 1 from all but 0, and make that 255",
        )
    if text.startswith("train ids") and classes < values[-1] < _LABEL_IDS:
        return "the values look like label ids", "give the files of train ids (*_labelTrainIds.png)"
    explanation = explain(values, pixels)
    return (explanation.what, explanation.hint) if explanation is not None and explanation.sure else None


class Explanation(NamedTuple):
    """A cause of the values, what to do, and whether they are surely no class ids."""

    what: str
    hint: str
    sure: bool = True


def explain(values: Sequence[int], pixels: Int64Array) -> Explanation | None:
    """What values far apart probably are, and what to do; None for values that could be ids.

    ``values`` are sorted and without 255; ``pixels`` (256,) counts each.
    """
    classes = max(values) + 1
    step = math.gcd(*values)
    far = values[-1] >= _FAR and 4 * len(values) <= values[-1]
    top = (0, IGNORE) if pixels[IGNORE] else (0, classes - 1)
    if len(values) > 10 and classes >= MANY and pixels[list(top)].sum() > 0.8 * pixels.sum():
        return Explanation(
            f"nearly all pixels are {top[0]} or {top[1]}, the others lie between: a mask with soft edges",
            "cut it at a threshold and store 0 and 1",
        )
    if len(values) >= MANY:
        return Explanation("more than segmentation labels have", "store class ids, one small number a class")
    if len(values) > 2 and values[-1] >= IGNORE - 5 and values[-2] < min(MANY, values[-1] // 2):
        return Explanation(
            f"{values[-1]} lies far above the others, as values do that mean nothing",
            f"write {values[-1]} into ignore.txt, if it is void",
        )
    if values[0] >= IGNORE // 2 and 2 * len(values) < classes:
        return Explanation("they count down from 255: ids that were stored as 255 - id", "invert the labels")
    if step > 1 and (len(values) > 3 or 2 * len(values) < classes):
        what = f"multiples of {step}: ids that were scaled to be seen"
        return Explanation(what, f"divide the values by {step}", far)
    if 2 * len(values) < classes:
        return Explanation(
            "far apart, as the greys are that colours turn to",
            "convert colour-coded labels by their colours, each to its class id",
            far,
        )
    return None
