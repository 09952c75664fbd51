"""Do the threads that read, augment and encode scale as processes would? Images/s of both, in turns.

    python benchmarks/cache_decode.py IMAGES [--recipe shards/gkd-1a.yaml] [--out results.json]

Work is what cache-teacher does to an image before the teacher: read, decode, crop, RandAugment, encode
as JPEG, decode again. Processes send the view back as cache-teacher would need it (pixels and JPEG, pickled).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.plan import Entry, ImagePlan, make_plan
from gkd_scale.cache.views import view_of
from gkd_scale.config import parse
from gkd_scale.prefetch import prefetch


def view(cfg: CacheTeacherConfig, entry: Entry) -> Any:
    return view_of(cfg, ImagePlan((), 1), entry, 0)


def threads(cfg: CacheTeacherConfig, entries: list[Entry], workers: int) -> float:
    start = time.perf_counter()
    for result in prefetch(partial(view, cfg), entries, workers, 8 * workers):
        assert not isinstance(result, str), result
    return len(entries) / (time.perf_counter() - start)


def processes(cfg: CacheTeacherConfig, entries: list[Entry], workers: int) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(partial(view, cfg), entries[: 4 * workers]))  # imports are not counted
        start = time.perf_counter()
        for result in pool.map(partial(view, cfg), entries, chunksize=4):
            assert not isinstance(result, str), result
        return len(entries) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument(
        "--recipe", type=Path, default=Path(__file__).resolve().parents[1] / "shards/gkd-1a.yaml"
    )
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    flags = ["--config", str(options.recipe), "--images", str(options.images), "--out", "unused"]
    cfg = parse(CacheTeacherConfig, flags, prog="cache_decode", description="")
    entries = list(make_plan(options.images, 512))[: options.limit]
    best: dict[str, float] = {}
    for _ in range(options.repeats):
        for kind in (threads, processes):
            for workers in (1, 2):
                name = f"{kind.__name__}_{workers}_images_s"
                best[name] = round(max(best.get(name, 0), kind(cfg, entries, workers)), 1)
    record = {
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "images": len(entries),
        "recipe": options.recipe.name,
        **best,
        "threads_2_over_1": round(best["threads_2_images_s"] / best["threads_1_images_s"], 3),
        "threads_over_processes_2": round(best["threads_2_images_s"] / best["processes_2_images_s"], 3),
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
