"""Speed of the cache, as ratios measured in one run on one machine.

    python benchmarks/cache_speed.py IMAGES [--tokens 16x16x1536] [--peer streaming=PYTHON ...]

Reading, from a cache of IMAGES with tokens of the given shape (a random projection of patch means stands in
for the teacher: speed does not depend on the values), page cache warm, the best of ``--repeats`` in turns:

- features: CLS and patch tokens as fp16 batches of 32, JPEG bytes beside them, every CRC32 checked, with 2
  threads; over ``cat`` of the same tars to /dev/null.
- loader: what stage 1 gets from CachedSource, that is features and decoded pixels.
- webdataset: ``WebDataset(tars).decode("rgb8")`` and the same fields stacked in batches of 32.
- peers: the same samples in MosaicML streaming's and litdata's own format, the same fields, their data
  loaders with 2 workers; PYTHON is an interpreter that has the library (their pins clash with ours).
- verify: MB/s over ``sha256sum`` of the same tars.

Building: images/s of ``cache-teacher`` over a bare loop of the same teacher on the same decoded batches
(``--teachers``; the teacher computes on one thread, so that the other core plays the host of a GPU), the best
of ``--repeats`` in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.loader import CachedSource, Slot
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.verify import verify
from gkd_scale.cache.views import decode
from gkd_scale.memory import keep_freed
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.prefetch import prefetch
from gkd_scale.types import Features

BATCH, WORKERS = 32, 2
PEERS = Path(__file__).with_name("cache_peers.py")


class Projection:
    """A teacher of any shape that costs next to nothing."""

    def __init__(self, size: tuple[int, int], grid: tuple[int, int], dim: int) -> None:
        self.image_size, self.grid, self.dim = size, grid, dim
        self._weight = torch.randn(3, dim, generator=torch.Generator().manual_seed(0))

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "projection"}

    def __call__(self, pixels: torch.Tensor) -> Features:
        means = torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, self.grid)
        patches = means.flatten(2).transpose(1, 2) @ self._weight
        return Features(patches.mean(dim=1), patches)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_features(cache: Cache) -> None:
    """Every sample of view 0 in batches, in order, nothing decoded."""
    source = CachedSource(cache, global_batch=BATCH, micro_batch=BATCH, workers=WORKERS)
    starts = range(0, cache.num_samples - BATCH + 1, BATCH)
    batches = [[Slot(row, 0, start + row) for row in range(BATCH)] for start in starts]
    for _ in prefetch(source.read, batches, WORKERS, WORKERS + 1):
        pass


def read_batches(cache: Cache) -> None:
    """Every sample of view 0 as stage 1 gets it."""
    source = CachedSource(cache, global_batch=BATCH, micro_batch=BATCH, workers=WORKERS)
    for _ in source.batches(0, cache.num_samples // BATCH):
        pass


def read_webdataset(tars: list[str], samples: int) -> None:
    import webdataset

    batch: list[Any] = []
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8")
    for _, sample in zip(range(samples), dataset, strict=False):
        batch.append((sample["jpg"], sample["cls.npy"], sample["patch.npy"]))
        if len(batch) == BATCH:
            [np.stack(field) for field in zip(*batch, strict=True)]
            batch = []


def peer(python: str, *arguments: object) -> float:
    """The last number that ``cache_peers.py`` prints in another interpreter."""
    command = [python, str(PEERS), *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.returncode == 0, process.stdout
    return float(process.stdout.split()[-1])


def measure_reading(cache: Cache, peers: dict[str, str], work: Path, repeats: int) -> dict[str, Any]:
    tars = sorted(str(tar) for tar in cache.path.rglob("*.tar"))
    samples = cache.num_samples // BATCH * BATCH
    share = samples / cache.num_samples
    size = sum(Path(tar).stat().st_size for tar in tars) / 1e6
    null = subprocess.DEVNULL
    readers: dict[str, Callable[[], float]] = {
        "cat": lambda: seconds(lambda: subprocess.run(["cat", *tars], stdout=null, check=True)),
        "features": lambda: seconds(lambda: read_features(cache)) / share,
        "loader": lambda: seconds(lambda: read_batches(cache)) / share,
        "webdataset": lambda: seconds(lambda: read_webdataset(tars, samples)) / share,
        "sha256sum": lambda: seconds(lambda: subprocess.run(["sha256sum", *tars], stdout=null, check=True)),
        "verify": lambda: seconds(lambda: verify(cache.path, print, quiet=True)),
    }
    for name, python in peers.items():
        export(cache, work / "export")
        peer(python, name, "write", work / "export", work / name)
        readers[name] = lambda name=name, python=python: (  # type: ignore[misc]
            peer(python, name, "read", work / name, samples) / share
        )
    took: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in readers.items():
            took[name] = min(took.get(name, float("inf")), run())
    speed = {name: size / value for name, value in took.items()}
    pairs = [("features", "cat"), ("loader", "cat"), ("loader", "webdataset"), ("verify", "sha256sum")]
    return {
        **{f"{name}_mb_s": round(value, 1) for name, value in speed.items()},
        "loader_images_s": round(cache.num_samples / took["loader"], 1),
        **{
            f"{one}_over_{other}": round(speed[one] / speed[other], 3)
            for one, other in [*pairs, *(("loader", name) for name in peers)]
        },
    }


def export(cache: Cache, folder: Path) -> None:
    """The samples of view 0 as plain files, for the peers to write in their formats."""
    folder.mkdir(exist_ok=True)
    for index in range(cache.num_samples):
        sample = cache.read(0, index)
        (folder / f"{index:06}.jpg").write_bytes(sample.jpeg)
        np.save(folder / f"{index:06}.cls.npy", sample.cls)
        np.save(folder / f"{index:06}.patch.npy", sample.patches)


def measure_building(name: str, size: str, images: Path, work: Path, repeats: int) -> dict[str, Any]:
    """``name`` is demo_teacher, or a timm name whose weights are drawn at random."""
    cfg = CacheTeacherConfig(images=images, image_size=size, out=work / name, workers=2)
    weights = None
    if name != "demo_teacher":
        import timm
        from safetensors.torch import save_file

        weights = work / f"{name}.safetensors"
        save_file(timm.create_model(name, num_classes=0).state_dict(), weights)
    teacher = load_teacher(TeacherConfig(name, weights=weights), cfg.size, "cpu")
    run_teacher(teacher, np.zeros((BATCH, 3, *cfg.size), np.uint8))  # kernels are compiled at the first batch
    build(cfg, teacher, quiet=True)
    cache = Cache.open(cfg.out)
    pixels = [decode(cache.read(0, index).jpeg) for index in range(cache.num_samples)]
    batches = [np.stack(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    took = {"build": float("inf"), "bare": float("inf")}
    for _ in range(repeats):
        shutil.rmtree(cfg.out)
        took["build"] = min(took["build"], seconds(lambda: build(cfg, teacher, quiet=True)))
        took["bare"] = min(took["bare"], seconds(lambda: [run_teacher(teacher, batch) for batch in batches]))
    rates = {key: cache.num_samples / value for key, value in took.items()}
    return {
        f"{name}_images_s": round(rates["bare"], 1),
        f"cache_{name}_images_s": round(rates["build"], 1),
        f"cache_over_{name}": round(rates["build"] / rates["bare"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--tokens", default="16x16x1536", help="rows x columns x channels")
    parser.add_argument("--image-size", default="224")
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--teachers", nargs="*", default=[], metavar="NAME@SIZE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # as the command line and the launchers do
    record: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 1),
    }
    rows, columns, dim = map(int, options.tokens.split("x"))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for ref in options.teachers:
            name, size = ref.split("@")
            record |= measure_building(name, size, options.images, work, options.repeats)
        cfg = CacheTeacherConfig(images=options.images, image_size=options.image_size, out=work / "cache")
        build(cfg, Projection(cfg.size, (rows, columns), dim), quiet=True)
        cache = Cache.open(cfg.out)
        peers = dict(ref.split("=", 1) for ref in options.peer)
        record |= {"tokens": options.tokens, "image_size": options.image_size, "samples": cache.num_samples}
        record |= measure_reading(cache, peers, work, options.repeats)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
