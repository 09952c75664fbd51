"""Converters on originals of full size: seconds, megapixels a second, peak memory.

    python benchmarks/converters.py

Originals are made up (real names, sizes and label values; photographs enlarged from ../shared if it
exists, noise otherwise), because the datasets ask for a registration: Potsdam tiles of 6000x6000 in RGB and
IRRG, Mapillary frames of 4032x3024.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gkd_scale.segment.datasets.isprs import LABELS_6

SHARED = Path(__file__).parents[2] / "shared"


def picture(size: tuple[int, int], number: int) -> Image.Image:
    """An image of ``size`` (width, height)."""
    paths = sorted((SHARED / "camvid/source_day/images").glob("*.jpg"))
    if paths:
        return Image.open(paths[number]).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def label(size: tuple[int, int], values: list[object], number: int) -> Image.Image:
    """Regions of ``values``: ids, or colours."""
    table = np.array(values, np.uint8)
    ids = np.random.default_rng(number).integers(0, len(values), (24, 24))
    return Image.fromarray(table[ids]).resize(size, Image.Resampling.NEAREST)


def potsdam(root: Path, tiles: int) -> float:
    """Write tiles; megapixels to convert."""
    for number in range(tiles):
        for space in ("RGB", "IRRG"):
            path = root / f"2_Ortho_{space}" / f"top_potsdam_2_{10 + number}_{space}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture((6000, 6000), number).save(path)
        path = root / "5_Labels_all" / f"top_potsdam_2_{10 + number}_label.tif"
        path.parent.mkdir(exist_ok=True)
        label((6000, 6000), list(LABELS_6.palette), number).save(path)
    return 36.0 * 2 * tiles


def mapillary(root: Path, frames: int) -> float:
    """Write frames; megapixels to convert."""
    for number in range(frames):
        image = root / "training/images" / f"{number:03}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        picture((4032, 3024), number).save(image)
        path = root / "training/labels" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        label((4032, 3024), list(range(66)), number).save(path)
    return 4032 * 3024 / 1e6 * frames


def main() -> None:
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    record: dict[str, object] = {"date": time.strftime("%Y-%m-%d"), "machine": machine}
    program = str(Path(sys.executable).parent / "gkd-scale")
    with tempfile.TemporaryDirectory() as temporary:
        for name, write, count in (("potsdam", potsdam, 2), ("mapillary", mapillary, 12)):
            source, out = Path(temporary) / name, Path(temporary) / f"{name}-out"
            megapixels = write(source, count)
            command = [program, "datasets", "convert", name, str(source), str(out)]
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - began
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            record[name] = {
                "originals": count,
                "seconds": round(seconds, 1),
                "megapixels_a_second": round(megapixels / seconds, 1),
                "the_same_again_seconds": round(time.perf_counter() - began, 1),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
            }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
