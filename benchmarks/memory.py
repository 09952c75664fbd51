"""A network's step with the C library's defaults, and with freed memory kept (gkd_scale/memory.py).

    python benchmarks/memory.py [--rounds 5] [--out results.json]

Each way runs in a process of its own, in turns; the ratio is that of the medians. Convolutional teachers
run on a channels-last layout, as in cache-teacher; the last row is the teacher without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "teacher mobilenetv2_100, 16 x 144x192": ("mobilenetv2_100", (144, 192), False, True),
    "teacher vit_small_patch16_224, 16 x 224x224": ("vit_small_patch16_224", (224, 224), False, False),
    "student vit_tiny_patch16_224, 16 x 144x192, forward and backward": (
        "vit_tiny_patch16_224",
        (144, 192),
        True,
        False,
    ),
    "teacher mobilenetv2_100, 16 x 144x192, channels first": ("mobilenetv2_100", (144, 192), False, False),
}


def step_seconds(case: str, keep: bool) -> float:
    """Median seconds of a step of 16 images, after five that do not count."""
    from gkd_scale.memory import keep_freed

    if keep:
        assert keep_freed()
    import timm
    import torch

    name, size, train, channels_last = CASES[case]
    net = timm.create_model(name, **({} if "mobilenet" in name else {"img_size": size})).train(train)
    if channels_last:
        net.to(memory_format=torch.channels_last)
    pixels = torch.randn(16, 3, *size)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        if train:
            net.forward_features(pixels).square().mean().backward()
        else:
            with torch.no_grad():
                net.forward_features(pixels)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[5:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=2, metavar=("CASE", "HOW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(step_seconds(options.one[0], options.one[1] == "kept"))
        return
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    record: dict[str, object] = {"date": time.strftime("%Y-%m-%d"), "machine": machine}
    for case in CASES:
        seconds: dict[str, list[float]] = {"default": [], "kept": []}
        for _ in range(options.rounds):
            for mode, values in seconds.items():
                command = [sys.executable, __file__, "--one", case, mode]
                values.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
        medians = {mode: statistics.median(values) for mode, values in seconds.items()}
        record[case] = {
            **{f"{mode}_ms_an_image": round(1e3 * value / 16, 2) for mode, value in medians.items()},
            "ratio": round(medians["default"] / medians["kept"], 2),
        }
        print(case, record[case], flush=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
