"""The pixels of each class in each training image: counted once, kept in the run's folder.

``class_pixels.parquet`` has one row an image, in the order of the training set, and one column a class. Its
metadata name the training set; for another training set the pixels are counted again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from gkd_scale import files
from gkd_scale.prefetch import prefetch
from gkd_scale.types import IGNORE, Int64Array, SegDataset

FILE = "class_pixels.parquet"
_KEY = b"gkd-scale training set"


def count(dataset: SegDataset, workers: int, advance: Callable[[], object] = lambda: None) -> Int64Array:
    """(images, K) pixels of each class in each label; ignored pixels are not counted."""
    classes = len(dataset.classes)

    def count_one(index: int) -> Int64Array:
        return np.bincount(dataset.label(index).ravel(), minlength=IGNORE + 1)[:classes].astype(np.int64)

    rows = []
    for row in prefetch(count_one, range(len(dataset)), workers, 4 * workers):
        rows.append(row)
        advance()
    return np.stack(rows)


def write(folder: Path, pixels: Int64Array, dataset: SegDataset, identity: Any) -> None:
    """Write the counts into ``folder``; ``identity`` is JSON that names the training set."""
    # A class name may occur twice in odd label sets, a column name may not.
    names = [f"{index} {name}" for index, name in enumerate(dataset.classes)]
    table = pa.table(dict(zip(names, pixels.T, strict=True)))
    table = table.replace_schema_metadata({_KEY: json.dumps(identity, sort_keys=True).encode()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    files.write_bytes(folder / FILE, buffer.getvalue())


def read(folder: Path, identity: Any) -> Int64Array | None:
    """The counts in ``folder``; None if there are none of the training set ``identity``."""
    try:
        table = parquet.read_table(folder / FILE)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    if (table.schema.metadata or {}).get(_KEY) != json.dumps(identity, sort_keys=True).encode():
        return None
    return np.stack([column.to_numpy() for column in table.columns], axis=1)
