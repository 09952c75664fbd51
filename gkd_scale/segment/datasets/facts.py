"""Facts of one label file that tell how it was made: values, neighbours, palette."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gkd_scale.segment.datasets.labels import Raw, read_palette
from gkd_scale.types import IGNORE, Int64Array

VALUES = 256
_ROWS = 64
"""The number of a label's rows that are read, evenly spread."""

Palette = bytes
"""Red, green and blue of index 0, of index 1, and so on."""


class Facts(NamedTuple):
    """Counts in some rows of a label: ``pixels`` of each stored value, (256,), and horizontal neighbours.

    Of ``pairs`` of neighbours, ``changes`` differ. ``specks`` pixels differ from both neighbours; ``ramps``
    of them have a value between those of the two, neither of which is 255.
    """

    path: Path
    pixels: Int64Array
    pairs: int
    changes: int
    specks: int
    ramps: int
    palette: Palette | None


def facts_of(raw: Raw, path: Path, channel: int | None = None, *, whole: bool = False) -> Facts | None:
    """The facts of a label file's values; None for colours, or for values that no label has.

    ``whole`` reads all rows. If some rows hold fewer than two values but 255, values are counted in all rows.
    """
    if raw.ndim == 3 and channel is not None:
        raw = raw[..., channel]
    if raw.ndim != 2 or raw.size == 0 or (raw.dtype != np.bool_ and raw.dtype.kind not in "ui"):
        return None
    if raw.dtype not in (np.bool_, np.uint8):
        if raw.min() < 0 or raw.max() >= VALUES:
            return None
        raw = raw.astype(np.uint8)
    rows = raw if whole else raw[:: max(1, raw.shape[0] // _ROWS)]
    pixels = np.bincount(rows.ravel(), minlength=VALUES)
    if rows is not raw and np.count_nonzero(pixels[:IGNORE]) < 2:
        pixels = np.bincount(raw.ravel(), minlength=VALUES)
    change = rows[:, 1:] != rows[:, :-1]
    specks = change[:, 1:] & change[:, :-1]
    changes, alone, ramps = (
        int(np.count_nonzero(mask)) for mask in (change, specks, specks & _between(rows))
    )
    return Facts(path, pixels, change.size, changes, alone, ramps, read_palette(path))


def _between(rows: Raw) -> npt.NDArray[np.bool_]:
    """Which inner pixels (H, W-2) lie between their horizontal neighbours in value."""
    left, middle, right = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
    up, down = (left < middle) & (middle < right), (left > middle) & (middle > right)
    return (up & (right != IGNORE)) | (down & (left != IGNORE))
