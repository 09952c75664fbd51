"""What the search adds to its trials: 8 one-worker trials on 2 cores, against the same runs alone.

``python benchmarks/tune_overhead.py --out runs/bench-overhead``

Alone means: the code of a trial (stage 1, probe, checkpoints) in a process of its own with one thread, as
Ray gives a trial of one CPU, one after another, without Ray; half the sum of their wall times is what two
cores could do at best. ``ratio`` is the search's wall time, start to exit, over that. With ``--pair``,
``pair_seconds`` is the wall time of two of them at once, still without Ray: what two trials cost each other
in memory bandwidth is no overhead of the search, and ``ratio_to_pairs`` leaves it out. ``--alone-runs 2``
measures 2 of the 8 runs alone, which differ in the learning rate only, and takes their mean for all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
LRS = [2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 3e-3]


def flags(out: Path, steps: int, lrs: list[float]) -> list[str]:
    space = out / "space.yaml"
    out.mkdir(parents=True, exist_ok=True)
    space.write_text(f"optim.lr: choice({', '.join(map(str, lrs))})\nglobal_batch: 16\n")
    arguments = ["--space", str(space), "--search", "grid", "--scheduler", "none"]
    return [*arguments, "--steps", str(steps), "--out", str(out / "search")]


def alone(out: Path, steps: int, lr: float) -> NoReturn:
    """One trial without Ray, in this process; prints the seconds that a trial does not spend (checking)."""
    from gkd_scale import config
    from gkd_scale.engine.runtime import free_port
    from gkd_scale.search import checks, trial
    from gkd_scale.search.config import SearchConfig

    cfg = config.parse(SearchConfig, flags(out, steps, LRS), prog="alone", description="")
    began = time.monotonic()
    plan = replace(checks.check(cfg), out=out / "alone")
    seconds = time.monotonic() - began
    trial._report = trial._here = lambda *_: {}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    trial.rank_main(plan, {"optim.lr": lr}, f"lr-{lr}", 0, address)
    print(json.dumps({"checking": seconds}), flush=True)
    os._exit(0)


def wall(command: list[str]) -> tuple[float, str]:
    """Seconds and standard output of a command whose threads are as many as Ray gives a trial of one CPU."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return time.monotonic() - began, process.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Wall time of a search over that of its runs alone.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-overhead"))
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--alone-runs", type=int, default=8)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--pair", action="store_true")
    parser.add_argument("--alone", type=float, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone is not None:
        alone(args.out, args.steps, args.alone)
    lrs = LRS[: args.trials]
    load = os.getloadavg()[0]
    total, _ = wall([sys.executable, str(ROOT / "tuning/search.py"), *flags(args.out, args.steps, lrs)])
    print(f"search: {total:.1f} s", flush=True)
    command = [sys.executable, __file__, "--out", str(args.out), "--steps", str(args.steps), "--alone"]

    def run(lr: float) -> float:
        took, output = wall([*command, str(lr)])
        took -= float(json.loads(output.splitlines()[-1])["checking"])
        print(f"alone: {took:.1f} s", flush=True)
        return took

    seconds = [run(lr) for lr in lrs[: args.alone_runs]]
    alone_total = sum(seconds) / len(seconds) * len(lrs)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "load_average_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        "steps": args.steps,
        "trials": len(lrs),
        "search_seconds": round(total, 1),
        "alone_seconds": [round(value, 1) for value in seconds],
        "ratio": round(total / (alone_total / 2), 2),
    }
    if args.pair:
        with ThreadPoolExecutor(2) as pool:
            pair = max(pool.map(run, [lr * 1.01 for lr in lrs[:2]]))
        result |= {"pair_seconds": round(pair, 1), "ratio_to_pairs": round(total / (pair * len(lrs) / 2), 2)}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
