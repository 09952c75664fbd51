"""Speed of the cache, as ratios measured in one run on one machine.

    python benchmarks/cache_speed.py CACHE --images FOLDER [--teacher-weights FILE] [--out results.json]

- build: images/s of cache-teacher over a bare teacher loop on the same decoded batches.
- loader: MB/s from local shards over ``cat`` to /dev/null of the same files (page cache warm), and over
  ``webdataset.WebDataset(...).decode()`` reading the same fields; each the best of ``--repeats``, in turns.
- verify: MB/s over ``sha256sum`` of the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gkd_scale.cache.build import build, run_teacher
from gkd_scale.cache.config import RepairConfig
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.repair import recipe_of, teacher_arguments
from gkd_scale.cache.verify import verify
from gkd_scale.cache.views import channels_first, decode
from gkd_scale.models.teachers import load_teacher


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best(repeats: int, **works: Callable[[], object]) -> dict[str, float]:
    """The least seconds of each, measured in turns."""
    found: dict[str, float] = {}
    for _ in range(repeats):
        for name, work in works.items():
            found[name] = min(found.get(name, float("inf")), seconds(work))
    return found


def loading(cache: Cache, workers: int) -> None:
    source = CachedSource(cache, global_batch=32, micro_batch=32, workers=workers)
    for _ in source.batches(0, max(1, cache.num_samples // 32)):
        pass


def webdataset(tars: list[str], samples: int) -> None:
    import webdataset as wds

    batch: list[Any] = []
    for count, sample in enumerate(
        wds.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8")
    ):
        batch.append((sample["jpg"], sample["cls.npy"], sample["patch.npy"]))
        if len(batch) == 32:
            [np.stack(field) for field in zip(*batch, strict=True)]
            batch = []
        if count + 1 == samples:
            break
    gc.collect()


def measure_reading(cache: Cache, repeats: int) -> dict[str, float]:
    tars = sorted(str(tar) for tar in (cache.path / "v00").glob("*.tar"))
    size = sum(Path(tar).stat().st_size for tar in tars) / 1e6
    samples = cache.num_samples // 32 * 32
    share = samples / cache.num_samples

    def quiet_verify() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert verify(cache.path, print, quiet=True) == 0

    with open(os.devnull, "wb") as null:
        found = best(
            repeats,
            cat=lambda: subprocess.run(["cat", *tars], stdout=null, check=True),
            loader_0=lambda: loading(cache, 0),
            loader_2=lambda: loading(cache, 2),
            webdataset=lambda: webdataset(tars, samples),
            sha256sum=lambda: subprocess.run(["sha256sum", *tars], stdout=null, check=True),
            verify=quiet_verify,
        )
    speed = {name: size / took for name, took in found.items()}
    for name in ("loader_0", "loader_2", "webdataset"):
        speed[name] *= share
    every = sum(tar.stat().st_size for tar in cache.path.rglob("*.tar")) / 1e6
    speed["verify"] = every / found["verify"]
    return {
        **{f"{name}_mb_s": round(value, 1) for name, value in speed.items()},
        "loader_over_cat": round(speed["loader_2"] / speed["cat"], 3),
        "loader_over_webdataset": round(speed["loader_2"] / speed["webdataset"], 2),
        "verify_over_sha256sum": round(speed["verify"] / speed["sha256sum"], 2),
    }


def measure_building(cache: Cache, images: Path, weights: Path | None) -> dict[str, float]:
    spec = cache.spec
    given = teacher_arguments(spec.teacher)
    teacher = load_teacher(spec.teacher["model"], spec.image_size, weights=weights, device="cpu", **given)
    pixels = [channels_first(decode(cache.read(0, index).jpeg)) for index in range(cache.num_samples)]
    batches = [np.stack(pixels[start : start + 32]) for start in range(0, len(pixels), 32)]
    run_teacher(teacher, batches[0])
    with tempfile.TemporaryDirectory() as out:
        asked = recipe_of(spec, RepairConfig(Path(out) / "cache", images))
        asked.views = 1
        took = {}
        took["bare"] = seconds(lambda: [run_teacher(teacher, batch) for batch in batches])
        took["build"] = seconds(lambda: build(asked, teacher, quiet=True))
    rates = {name: cache.num_samples / value for name, value in took.items()}
    return {
        "teacher_images_s": round(rates["bare"], 1),
        "cache_teacher_images_s": round(rates["build"], 1),
        "cache_teacher_over_teacher": round(rates["build"] / rates["bare"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path)
    parser.add_argument("--images", type=Path, help="measure building too")
    parser.add_argument("--teacher-weights", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Cache.open(options.cache)
    found: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 1),
        "teacher": cache.fingerprint["model"],
        "tokens": f"{cache.grid[0]}x{cache.grid[1]} of {cache.dim}, {cache.spec.codec}",
        "samples": cache.num_samples,
        **measure_reading(cache, options.repeats),
    }
    if options.images:
        found |= measure_building(cache, options.images, options.teacher_weights)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
