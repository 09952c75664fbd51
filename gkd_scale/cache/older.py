"""The plan of caches of formats 1 and 2: read, and built to its end.

Format 1 cuts its shards from the list of images sorted by path, format 2 from a seeded permutation of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gkd_scale.cache.rows import METADATA, table_bytes
from gkd_scale.cache.spec import OLDEST
from gkd_scale.randomness import generator


def order(images: int, seed: int, version: int) -> npt.NDArray[np.uint32]:
    """Places in the list sorted by path, in the order of the shards."""
    places = np.arange(images, dtype=np.uint32)
    if version != OLDEST:
        generator("plan", seed, images).shuffle(places)
    return places


def plan_bytes(
    schema: pa.Schema, rows: Sequence[tuple[str, str, int]], samples_per_shard: int, version: int
) -> bytes:
    """``plan.parquet`` of (sid, name, bytes) in the order of the shards."""
    if version != OLDEST:
        schema = schema.with_metadata({METADATA: json.dumps({"format": version})})
    shards = [row // samples_per_shard for row in range(len(rows))]
    return table_bytes(pa.Table.from_arrays([*zip(*rows, strict=True), shards], schema=schema))
