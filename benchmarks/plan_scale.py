"""Time and memory of a plan and of opening a cache: up to 10^8 images and 10^6 shards, a process each.

``python benchmarks/plan_scale.py [--images N ...] [--shards N ...] [--work FOLDER]`` prints the tables of
``scale.md``. The images of a plan are names alone, a folder a class. The cache has one real shard of 1000
samples; the shards that the first batch reads are links to it. FOLDER takes about 60 bytes an image.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale.types import Features

SHARD = 1000
BATCH = 64


class Names:
    """A source of names: 1300 images a class, as in ImageNet."""

    def __init__(self, images: int) -> None:
        self.images = images

    def entries(self) -> Iterator[tuple[str, int]]:
        for image in range(self.images):
            yield f"train/n{image // 1300:08d}/n{image // 1300:08d}_{image}.JPEG", 100_000 + image % 1000

    def read(self, name: str) -> bytes:
        raise OSError(name)


class Pictures(Names):
    """The same with one small picture for all."""

    def read(self, name: str) -> bytes:  # noqa: ARG002
        buffer = io.BytesIO()
        Image.new("RGB", (48, 32), (90, 120, 60)).save(buffer, "PNG")
        return buffer.getvalue()


class Flat:
    """A teacher that costs nothing: 4x6 tokens of 12 channels."""

    image_size, grid, dim = (32, 48), (4, 6), 12

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "flat"}

    def __call__(self, pixels: Tensor) -> Features:
        return Features(torch.zeros(len(pixels), 12), torch.ones(len(pixels), 24, 12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[10**6, 10**7, 10**8])
    parser.add_argument("--shards", type=int, nargs="*", default=[10**3, 10**6])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, number, folder = options.one
        print(json.dumps({"plan": plan, "make": make, "read": read}[what](int(number), Path(folder))))
        return
    print("| images | plan, s | memory, MB | of it added, MB | bytes an image on disk | a shard, ms |")
    print("|---|---|---|---|---|---|")
    for images in options.images:
        row = _measure("plan", images, options.work)
        print(
            f"| {images:.0e} | {row['seconds']:.1f} | {row['memory'] / 1e6:.0f} | {row['added'] / 1e6:.0f} | "
            f"{row['bytes']:.1f} | "
            f"{row['shard'] * 1e3:.0f} |",
            flush=True,
        )
    print("\n| shards | open, s | batch, s | memory, MB | of it added, MB | shards.parquet, MB |")
    print("|---|---|---|---|---|---|")
    for shards in options.shards:
        row = _measure("read", shards, options.work)
        print(
            f"| {shards:.0e} | {row['open']:.2f} | {row['batch']:.2f} | {row['memory'] / 1e6:.0f} | "
            f"{row['added'] / 1e6:.0f} | "
            f"{row['table'] / 1e6:.1f} |",
            flush=True,
        )


def _measure(what: str, number: int, work: Path) -> dict[str, float]:
    """A measurement in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for step in ("make", "read") if what == "read" else (what,):
            command = [sys.executable, __file__, "--one", step, str(number), folder]
            process = subprocess.run(command, check=True, capture_output=True)
        row: dict[str, float] = json.loads(process.stdout)
        return row


def plan(images: int, folder: Path) -> dict[str, float]:
    """Make and write a plan of ``images``, then read one shard of it."""
    from gkd_scale.cache.plan import PLAN, make_plan, write_plan

    before, start = _peak(), time.perf_counter()
    image_plan = make_plan("names", SHARD, source=Names(images), folder=folder)
    disk_plan = write_plan(image_plan, folder / PLAN)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    assert len(disk_plan.shard(disk_plan.shards // 2)) == SHARD
    shard = time.perf_counter() - start
    size = (folder / PLAN).stat().st_size
    return {
        "seconds": seconds,
        "memory": (peak := _peak()),
        "added": peak - before,
        "bytes": size / images,
        "shard": shard,
    }


def make(shards: int, folder: Path) -> dict[str, float]:
    """A cache of ``shards`` shards with the same 1000 samples each, with the files of the first batch."""
    import pyarrow as pa

    from gkd_scale.cache import manifest
    from gkd_scale.cache.build import build
    from gkd_scale.cache.config import CacheTeacherConfig
    from gkd_scale.cache.order import Order
    from gkd_scale.cache.rows import METADATA, table_bytes
    from gkd_scale.cache.shard import index_path, tar_path
    from gkd_scale.cache.spec import SPEC, json_bytes, read_spec, write_spec
    from gkd_scale.files import sha256_file

    cfg = CacheTeacherConfig(images="names", image_size="32x48", out=folder, samples_per_shard=SHARD)
    build(cfg, Flat(), source=Pictures(SHARD), quiet=True)
    spec = replace(read_spec(folder), images=shards * SHARD)
    files = manifest.read_shards(folder, read_spec(folder)).files
    write_spec(spec, folder, {})
    order = Order([SHARD] * shards, seed=0)
    first_shards = {0} | {order.position(p)[1] // SHARD for p in range(BATCH)}
    index = bytes.fromhex(sha256_file(index_path(folder, 0, 0)))
    rng = np.random.default_rng(0)
    indexes = [index if shard in first_shards else rng.bytes(32) for shard in range(shards)]
    metadata = {"spec": spec.hash(), "files": {**files, SPEC: sha256_file(folder / SPEC)}}
    table = pa.table({"samples": [SHARD] * shards, "index": pa.array(indexes, pa.binary(32))})
    data = table_bytes(table.replace_schema_metadata({METADATA: json_bytes(metadata)}))
    (folder / manifest.SHARDS).write_bytes(data)
    (folder / manifest.CHECKSUM).write_text(
        f"{hashlib.sha256(data).hexdigest()}  {manifest.SHARDS}\n"
        f"{files[manifest.MANIFEST]}  {manifest.MANIFEST}\n"
    )
    for shard in first_shards - {0}:
        for path in (tar_path, index_path):
            path(folder, 0, shard).symlink_to(path(folder, 0, 0))
    return {}


def read(shards: int, folder: Path) -> dict[str, float]:
    """Open the cache and read the first batch, as a rank does."""
    from gkd_scale.cache.loader import CachedSource
    from gkd_scale.cache.manifest import SHARDS
    from gkd_scale.cache.reader import open_caches

    before, start = _peak(), time.perf_counter()
    caches = open_caches([folder])
    open_seconds = time.perf_counter() - start
    assert caches.num_samples == shards * SHARD
    start = time.perf_counter()
    source = CachedSource(caches, global_batch=BATCH, micro_batch=BATCH, seed=0)
    batch = next(iter(source.batches(0, 1)))
    seconds = time.perf_counter() - start
    assert len(batch.sids) == BATCH
    size = (folder / SHARDS).stat().st_size
    return {
        "open": open_seconds,
        "batch": seconds,
        "memory": (peak := _peak()),
        "added": peak - before,
        "table": size,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
