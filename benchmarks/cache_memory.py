"""Memory of cache-teacher and of the loader over the number of shards: peak resident MB of a process each.

python benchmarks/cache_memory.py [--shards 10 100 1000] [--out results.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BUILD = """
import resource, sys
from pathlib import Path
from gkd_scale.memory import keep_freed
keep_freed()
import torch
torch.set_num_threads(1)
from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.models.registry import load_teacher
cfg = CacheTeacherConfig(images=sys.argv[1], image_size="96x128", out=Path(sys.argv[2]), samples_per_shard=4,
                         batch_size=4, workers=2)
teacher = load_teacher(cfg.teacher, cfg.size, "cpu")
build(cfg, teacher, quiet=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
LOAD = """
import resource, sys
from pathlib import Path
from gkd_scale.memory import keep_freed
keep_freed()
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import Cache
cache = Cache.open(Path(sys.argv[2]))
for _ in CachedSource(cache, global_batch=8, micro_batch=8, workers=2).batches(0, cache.num_samples // 8):
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(script: str, *arguments: Path) -> float:
    """Peak resident MB of a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return round(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]), 1
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    record: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
    }
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "images"
        source.mkdir()
        count = 0
        for shards in sorted(options.shards):
            for index in range(count, 4 * shards):
                pixels = np.random.default_rng(index).integers(0, 256, (4, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((64, 48)).save(source / f"{index:05}.jpg")
            count = 4 * shards
            out = Path(temporary) / f"cache-{shards}"
            record[f"cache_teacher_mb_{shards}_shards"] = peak(BUILD, source, out)
            record[f"loader_mb_{shards}_shards"] = peak(LOAD, source, out)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
