"""Images a second that the loader of stage 1 gives for each core, and cores that GPUs need.

    python benchmarks/loader_cores.py IMAGES [--tokens 16x16x1536] [--image-size 224]

A cache of synthetic features in fp16 and in int8, with pixels, read from the page cache as stage 1 reads it:
on a GPU machine patch tokens stay as they are stored, on a CPU they are decoded. One process is pinned to a
core. Images a core are images over the processor's seconds of the process, so that other work on the machine
counts little. Then it compares two threads on two cores, and two processes of one thread, with one of
each: by wall time, the best of the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cache_speed import Projection

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import open_caches
from gkd_scale.memory import keep_freed

BATCH, TURNS = 32, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--tokens", default="16x16x1536", help="rows x columns x channels")
    parser.add_argument("--image-size", default="224")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    if options.one:
        cache, encoded, threads, first = options.one
        print(json.dumps(read(Path(cache), encoded == "True", int(threads), int(first))))
        return
    rows, columns, dim = map(int, options.tokens.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        print("| tokens stay | codec | images a core and s | MB an image | 2 threads | 2 processes |")
        print("|---|---|---|---|---|---|")
        for codec in ("fp16", "int8"):
            cfg = CacheTeacherConfig(
                images=options.images, image_size=options.image_size, codec=codec, out=Path(folder) / codec
            )
            build(cfg, Projection(cfg.size, (rows, columns), dim), quiet=True)
            size = sum(tar.stat().st_size for tar in cfg.out.rglob("*.tar"))
            for encoded in (True, False):
                print(row(cfg.out, codec, encoded, size), flush=True)


def row(cache: Path, codec: str, encoded: bool, size: int) -> str:
    """A row of the table."""
    alone, threads, processes = [], [], []
    for _ in range(TURNS):
        alone += start(cache, encoded, 1, 1)
        threads += start(cache, encoded, 2, 1)
        pair = start(cache, encoded, 1, 2)
        processes.append({"wall": max(run["wall"] for run in pair), "images": pair[0]["images"] * 2})
    best = {
        name: max(run["images"] / run["wall"] for run in turns)
        for name, turns in (("one", alone), ("threads", threads), ("processes", processes))
    }
    core = max(run["images"] / run["cpu"] for run in alone)
    return (
        f"| {'as stored (GPU)' if encoded else 'decoded (CPU)'} | {codec} | {core:.0f} | "
        f"{size / alone[0]['samples'] / 1e6:.2f} | {best['threads'] / best['one']:.2f} | "
        f"{best['processes'] / best['one']:.2f} |"
    )


def start(cache: Path, encoded: bool, threads: int, processes: int) -> list[dict[str, Any]]:
    """What :func:`read` returns in each of the ``processes``, which begin together."""
    command = [sys.executable, __file__, "none", "--one", str(cache), str(encoded), str(threads)]
    children = [
        subprocess.Popen([*command, str(first)], stdout=subprocess.PIPE, text=True)
        for first in range(processes)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in children]


def read(path: Path, encoded: bool, threads: int, first: int) -> dict[str, Any]:
    """Read on the cores from ``first`` on, one a thread, after an epoch that warms the page cache."""
    os.sched_setaffinity(0, range(first, first + threads))
    caches = open_caches([path])
    batch = {"global_batch": BATCH, "micro_batch": BATCH, "workers": threads}
    source, steps = CachedSource(caches, **batch, encoded=encoded), caches.num_samples // BATCH
    for _ in source.batches(0, steps):
        pass
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in source.batches(steps, 3 * steps):
        pass
    return {
        "images": 2 * steps * BATCH,
        "samples": caches.num_samples,
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }


if __name__ == "__main__":
    main()
