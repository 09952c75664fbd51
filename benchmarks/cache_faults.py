"""Faults of a cache: kills, bit flips, truncations. Prints and stores how many are detected.

    python benchmarks/cache_faults.py [--kills 20] [--flips 1000] [--out results.json]

- kills: SIGKILL of cache-teacher at random moments, then the same command; byte-identical each time.
- flips: random single bits over all files of a cache; each must be found by verify, and the loader must
  meet it as our error, or not read that byte.
- truncations: one shard cut at every member boundary.
Ray: tests/cache/test_cluster.py kills five workers, a driver and a node.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gkd_scale.cache.reader import Cache
from gkd_scale.cache.shard import parse_index
from gkd_scale.cache.verify import verify
from gkd_scale.errors import GkdError


def images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC).save(folder / f"{index:04}.png")
    return folder


def command(source: Path, out: Path) -> list[str]:
    flags = ["--images", source, "--image-size", "96x128", "--samples-per-shard", 4, "--batch-size", 4]
    flags += ["--views", 2, "--device", "cpu", "--out", out]
    return [sys.executable, "-m", "gkd_scale.cli", "cache-teacher", *map(str, flags)]


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kills(whole: Path, source: Path, work: Path, count: int, seed: int) -> dict[str, int]:
    """Kill a build ``count`` times after its first files appear, each a new cache; then finish it."""
    draw, same, during = random.Random(seed), 0, 0
    for number in range(count):
        out = work / f"killed-{number}"
        process = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / "cache.json").exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 2.0))
        process.send_signal(signal.SIGKILL)
        during += process.wait() == -signal.SIGKILL and not (out / "manifest.parquet").exists()
        subprocess.run(command(source, out), stdout=subprocess.DEVNULL, check=True)
        same += tree(out) == tree(whole)
        shutil.rmtree(out)
    return {"kills": count, "kills_before_the_end": during, "byte_identical": same}


def flips(whole: Path, count: int) -> dict[str, int]:
    """Flip ``count`` bits, one at a time, each weighted by file size."""
    draw = random.Random(1)
    files = sorted(path for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    weights = [path.stat().st_size for path in files]
    hits = errors = unread = tracebacks = 0
    for _ in range(count):
        (path,) = draw.choices(files, weights)
        data = path.read_bytes()
        bit = draw.randrange(8 * len(data))
        copy = bytearray(data)
        copy[bit // 8] ^= 1 << bit % 8
        path.write_bytes(copy)
        hits += verify(whole, lambda _: None, quiet=True) > 0
        try:
            cache = Cache.open(whole)
            for view in range(cache.views):
                for index in range(cache.num_samples):
                    cache.read(view, index)
            unread += 1
        except GkdError:
            errors += 1
        except Exception:
            tracebacks += 1
        path.write_bytes(data)
    return {
        "flips": count,
        "found_by_verify": hits,
        "met_as_our_error": errors,
        "in_bytes_the_loader_does_not_read": unread,
        "other_exceptions": tracebacks,
    }


def truncations(whole: Path) -> dict[str, int]:
    """Cut the first shard before each member's header."""
    tar = whole / "v00/shard-000000.tar"
    data, hits = tar.read_bytes(), 0
    members = parse_index(tar.with_suffix(".parquet").read_bytes()).members
    for member in members:
        tar.write_bytes(data[: member.offset - 512])
        hits += verify(whole, lambda _: None, quiet=True) > 0
    tar.write_bytes(data)
    return {"truncations": len(members), "truncations_found": hits}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    record: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        source, whole = images(work / "images", 24), work / "whole"
        subprocess.run(command(source, whole), stdout=subprocess.DEVNULL, check=True)
        record |= truncations(whole)
        record |= flips(whole, options.flips)
        assert verify(whole, print, quiet=True) == 0, "the cache is whole again"
        record |= kills(whole, source, work, options.kills, options.seed)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
