"""Does a search beat the defaults? ASHA + TPE on the embedded data, 2 cores, several seeds.

``python benchmarks/tune_search.py --out runs/bench-tune --seeds 0 1``

For each seed: a search of 12 trials; the default configuration trained alone for as many steps; then, since
the best of 12 is partly luck, best and default are trained again with another seed. Trial 1 of a search is
the default configuration itself, so that its best can only equal or beat it. Results go to
``tune_search.json``; the same command again measures what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SEARCH = [sys.executable, str(ROOT / "tuning/search.py")]


def search(out: Path, seed: int, steps: int, *extra: str) -> float:
    """Run a search; its minutes of wall time."""
    began = time.monotonic()
    command = [*SEARCH, "--out", str(out), "--seed", str(seed), "--steps", str(steps), *extra]
    with open(out.with_suffix(".log"), "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    return (time.monotonic() - began) / 60


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def single(out: Path, seed: int, steps: int, options: dict[str, Any]) -> float:
    """The mIoU of one configuration after all steps, on one core."""
    demo = yaml.safe_load((ROOT / "tuning/spaces/demo.yaml").read_text())
    values = {"global_batch": demo["global_batch"]}
    values |= {key: f"choice({value})" for key, value in options.items()} or {"drop_path": "choice(0.0)"}
    space = out.with_suffix(".yaml")
    space.write_text(yaml.safe_dump(values))
    # The search has built the cache by now; named, it is not looked after (and locked) by two at once.
    flags = ["--space", str(space), "--cache", "runs/demo-cache/proxy", "--cpus", "1"]
    search(out, seed, steps, *flags, "--search", "grid", "--scheduler", "none")
    return round(float(summary(out)["best"]["miou"]), 2)


def measure(out: Path, seed: int, steps: int, trials: int) -> dict[str, Any]:
    """One seed: a search, then the three runs that it is judged by, two at a time."""
    folder, record = out / f"search-{seed}", out / f"measured-{seed}.json"
    if record.exists():
        return json.loads(record.read_text())
    minutes = search(folder, seed, steps, "--num-trials", str(trials))
    outcome = summary(folder)
    best = outcome["best"]["config"]
    with ThreadPoolExecutor(2) as pool:
        runs = {
            "default_miou": pool.submit(single, out / f"default-{seed}", seed, steps, {}),
            "again_best_miou": pool.submit(single, out / f"again-best-{seed}", seed + 100, steps, best),
            "again_default_miou": pool.submit(single, out / f"again-default-{seed}", seed + 100, steps, {}),
        }
        scores = {name: run.result() for name, run in runs.items()}
    row = {
        "seed": seed,
        "minutes": round(minutes, 2),
        "trials": outcome["trials"],
        "share_saved": round(outcome["share_saved"], 3),
        "best_trial": outcome["best"]["trial"],
        "best_miou": round(outcome["best"]["miou"], 2),
        "best_config": best,
        "importance": {key: round(value, 3) for key, value in outcome["importance"].items()},
        "again_seed": seed + 100,
        **scores,
    }
    record.write_text(json.dumps(row, indent=2) + "\n")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="ASHA + TPE against the defaults.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-tune"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--trials", type=int, default=12)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [measure(args.out, seed, args.steps, args.trials) for seed in args.seeds]
    seeds = " ".join(map(str, args.seeds))
    result = {
        "command": f"python benchmarks/tune_search.py --steps {args.steps} --seeds {seeds}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "load_average_at_end": round(os.getloadavg()[1], 1),
        "objective": "mIoU in percent of a linear probe on frozen tokens, source/val",
        "steps": args.steps,
        "runs": runs,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
