"""Does a search beat the defaults? ASHA + TPE on the embedded data, 2 cores, several seeds.

``python benchmarks/tune_search.py --out runs/bench-tune --seeds 0 1``

For each seed: a search of 12 trials; the default configuration trained alone for as many steps; then, since
the best of 12 is partly luck, best and default are trained again with another seed. Results go to
``tune_search.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).resolve().parents[1]
SEARCH = [sys.executable, str(ROOT / "tuning/search.py")]


def search(out: Path, seed: int, steps: int, *more: str) -> float:
    """Run a search; its minutes of wall time."""
    began = time.monotonic()
    command = [*SEARCH, "--out", str(out), "--seed", str(seed), "--steps", str(steps), *more]
    with open(out.with_suffix(".log"), "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    return (time.monotonic() - began) / 60


def score(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def single(out: Path, seed: int, steps: int, options: dict[str, Any]) -> float:
    """The mIoU of one configuration after all steps."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fixed = yaml.safe_load((ROOT / "tuning/spaces/demo.yaml").read_text())
    values = {"global_batch": fixed["global_batch"]}
    values |= {key: f"choice({value})" for key, value in options.items()} or {"drop_path": "choice(0.0)"}
    space = out.with_suffix(".yaml")
    space.write_text(yaml.safe_dump(values))
    search(out, seed, steps, "--space", str(space), "--search", "grid", "--scheduler", "none")
    return float(score(out)["best"]["miou"])


def measure(out: Path, seed: int, steps: int, trials: int) -> dict[str, Any]:
    folder = out / f"search-{seed}"
    minutes = search(folder, seed, steps, "--num-trials", str(trials))
    found = score(folder)
    rows = pq.read_table(folder / "trials.parquet").num_rows
    best = found["best"]["config"]
    return {
        "seed": seed,
        "minutes": round(minutes, 2),
        "reports": rows,
        "trials": found["trials"],
        "share_saved": round(found["share_saved"], 3),
        "best_miou": round(found["best"]["miou"], 2),
        "best_config": best,
        "default_miou": round(single(out / f"default-{seed}", seed, steps, {}), 2),
        "again_seed": seed + 100,
        "again_best_miou": round(single(out / f"again-best-{seed}", seed + 100, steps, best), 2),
        "again_default_miou": round(single(out / f"again-default-{seed}", seed + 100, steps, {}), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="ASHA + TPE against the defaults.")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-tune"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--trials", type=int, default=12)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    runs = [measure(given.out, seed, given.steps, given.trials) for seed in given.seeds]
    seeds = " ".join(map(str, given.seeds))
    result = {
        "command": f"python benchmarks/tune_search.py --steps {given.steps} --seeds {seeds}",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "load_average_at_end": round(os.getloadavg()[1], 1),
        "objective": "mIoU in percent of a linear probe on frozen tokens, source/val",
        "steps": given.steps,
        "runs": runs,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
