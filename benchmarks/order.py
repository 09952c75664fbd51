"""Time and memory of the epoch's order: 10^6 to 10^9 samples, a few of 4096 ranks, a process each.

``python benchmarks/order.py [--samples N ...]`` prints the table of ``scale.md``, a row a rank. A rank makes
the order, takes its first batch in the middle of an epoch (as a resume does), then a thousand steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from gkd_scale.cache.order import Order
from gkd_scale.order import positions

WORLD, MICRO, SHARD = 4096, 8, 1000
RANKS = (0, 2047, 4095)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[10**6, 10**7, 10**8, 10**9])
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    print("| samples | shards | rank | first batch, s | added memory, MB | a position, µs |")
    print("|---|---|---|---|---|---|")
    for samples in options.samples:
        for rank in RANKS:
            command = [sys.executable, __file__, "--one", str(samples), str(rank)]
            row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            print(
                f"| {samples:.0e} | {samples // SHARD} | {rank} | {row['first']:.3f} | "
                f"{row['memory'] / 1e6:.0f} | {row['position'] * 1e6:.1f} |"
            )


def measure(samples: int, rank: int) -> dict[str, float]:
    """Seconds to the first batch of ``rank``, bytes of memory added, seconds of a position later."""
    np.random.Generator(np.random.Philox(key=1)).permutation(8)  # numpy's own start
    before = _peak()
    start = time.perf_counter()
    order = Order(np.full(samples // SHARD, SHARD), 0)
    step = samples // 2 // (WORLD * MICRO)
    share = {"micro": MICRO, "accumulation": 1, "rank": rank, "world": WORLD}
    for batch in positions(step, step + 1, **share):
        _ = [order.position(p) for p in batch]
    first = time.perf_counter() - start
    start = time.perf_counter()
    for batch in positions(step + 1, step + 1001, **share):
        _ = [order.position(p) for p in batch]
    position = (time.perf_counter() - start) / (1000 * MICRO)
    return {"first": first, "memory": _peak() - before, "position": position}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
