"""Ten SIGKILLs of a random rank, three of them while a checkpoint is written; then the same weights.

    python benchmarks/stage1_kills.py [--kills 10] [--saving 3] [--steps 240] [--seed 0]

Two ranks under torchrun, ZeRO-2, on random images and a random tiny teacher that the script makes. After
each kill the same command is given again. At the end the exported weights, the last checkpoint and every
loss must be those of an undisturbed run, byte for byte; exit status 1 if they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gkd_scale.engine.runtime import free_port

ROOT = Path(__file__).parents[1]
TINY = ["patch_size=16", "embed_dim=192", "depth=4", "num_heads=3"]
SAVE_EVERY = 10


def make_cache(folder: Path) -> Path:
    """A cache of 24 random images, 2 views."""
    images = folder / "images"
    images.mkdir()
    for index in range(24):
        small = np.random.default_rng(index).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 48)).save(images / f"{index}.png")
    cache = folder / "cache"
    flags = ["--images", images, "--image-size", "32x48", "--views", "2", "--out", cache]
    subprocess.run([Path(sys.executable).parent / "gkd-scale", "cache-teacher", *flags], check=True)
    return cache


def start(cache: Path, out: Path, steps: int) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    flags = ["--ds-config", "zero2.json", "--cache", cache, "--student", "vit_tiny_patch16_224"]
    flags += ["--student-args", *TINY, "--out", out, "--global-batch", 4, "--steps", steps]
    flags += ["--save-every", SAVE_EVERY, "--workers", 1]
    command = [sys.executable, *launch, str(ROOT / "launchers/stage1.py"), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def rank_of(out: Path, rank: int) -> int:
    """The process id of a rank that trains into ``out``."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            environ = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if str(out) in command and "torch.distributed.run" not in command and f"RANK={rank}" in environ:
            return int(process.name)
    raise LookupError(f"no rank {rank}")


def losses(out: Path) -> list[float]:
    path = out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["loss"] for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_until(process: subprocess.Popen[bytes], condition: object, seconds: float = 180) -> bool:
    """Whether ``holds()`` became true before the process ended."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def kill_one(process: subprocess.Popen[bytes], out: Path, at_save: bool, rng: random.Random) -> str | None:
    """Kill a rank at a random moment, or while a checkpoint is half written; what was done."""
    count = len(losses(out))
    goal = max(count + 1, count // SAVE_EVERY * SAVE_EVERY + rng.randint(2, 2 * SAVE_EVERY))
    if not wait_until(process, lambda: len(losses(out)) >= goal):
        return None
    rank = 0 if at_save else rng.randrange(2)
    victim = rank_of(out, rank)
    folder = out / "checkpoints"
    if at_save:
        if not wait_until(process, lambda: any(folder.glob("*.part"))):
            return None
    else:
        time.sleep(rng.random() * 0.2)
    os.kill(victim, signal.SIGKILL)
    parts = [file.name for file in folder.glob("*.part")]
    process.wait(120)
    return f"rank {rank} after step {len(losses(out))}" + (f", writing {parts[0]}" if parts else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--saving", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        cache = make_cache(Path(scratch))
        whole, other = Path(scratch) / "whole", Path(scratch) / "killed"
        assert start(cache, whole, args.steps).wait() == 0
        kills = saves = 0
        while kills < args.kills:
            at_save = saves < args.saving and args.kills - kills <= 2 * (args.saving - saves)
            text = kill_one(start(cache, other, args.steps), other, at_save, rng)
            if text is None:
                print("the run ended before its kill: give more --steps")
                return 2
            kills, saves = kills + 1, saves + ("writing" in text)
            print(f"kill {kills}: {text}", flush=True)
        assert start(cache, other, args.steps).wait() == 0
        names = ["backbone.safetensors", f"checkpoints/step-{args.steps:08d}.safetensors"]
        same = [(whole / name).read_bytes() == (other / name).read_bytes() for name in names]
        same.append(losses(whole) == losses(other))
        verdict = "the same weights, checkpoint and losses" if all(same) else f"NOT the same: {same}"
        print(f"{kills} kills, {saves} while saving; {verdict}")
        return 0 if all(same) and saves >= args.saving else 1


if __name__ == "__main__":
    sys.exit(main())
