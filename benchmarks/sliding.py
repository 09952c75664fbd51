"""What sliding windows cost beside the model: images/s of inference over the bare forward of its windows.

A ViT-S at patch 16 with a head, on Cityscapes-like images (1024x2048, scaled to 512x1024, windows of 512
with stride 341, as in the paper) or smaller ones. Random weights: time does not depend on them. The bare
forward is ``model.logits`` on the same windows in the same batches, cut beforehand; inference is everything
from images in memory to counted pixels: scaling, cutting, averaging, logits to ground-truth size, argmax and
confusion. Both in turns, the medians compared.

    python benchmarks/sliding.py --images 4 --repeats 3
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gkd_scale import config, console
from gkd_scale.cache.config import parse_size
from gkd_scale.config import option
from gkd_scale.models.backbone import load_backbone
from gkd_scale.randomness import generator
from gkd_scale.segment.evaluate import pick_device
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.inference import Inference, Windows, confusion, prepare
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import SegSample

CLASSES = 19


@dataclass
class Options:
    """Time inference by windows against the forward alone."""

    student: str = option("vit_small_patch16_224", "timm name")
    head: str = option("linear", "segmentation head")
    image: str = option("1024x2048", "size of images and labels")
    image_size: str = option("512", "training size, and the window")
    stride: str = option("341", "of the windows")
    images: int = option(4, "images a repetition")
    batch_size: int = option(8, "windows that go through the model together")
    repeats: int = option(3, "repetitions of both")
    workers: int = option(2, "threads that scale images")
    device: str = option("auto", "auto, cpu, cuda, ...")


class Noise:
    """Images and labels in memory."""

    name = "noise"
    classes: Sequence[str] = [str(index) for index in range(CLASSES)]
    palette: Sequence[tuple[int, int, int]] = [(index, index, index) for index in range(CLASSES)]
    absent: Sequence[str] = ()

    def __init__(self, images: int, size: tuple[int, int]) -> None:
        rng = generator("benchmark", "sliding")
        self._samples = [
            SegSample(
                str(index),
                rng.integers(0, 256, (*size, 3), dtype=np.uint8),
                rng.integers(0, CLASSES, size, dtype=np.uint8),
            )
            for index in range(images)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> SegSample:
        return self._samples[index]


class Recorder:
    """A model that remembers the batches it was shown."""

    def __init__(self, model: Segmenter) -> None:
        self.model, self.stride, self.fill = model, model.stride, model.fill
        self.batches: list[torch.Tensor] = []

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(pixels)
        return torch.zeros(len(pixels), CLASSES, *pixels.shape[2:], device=pixels.device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> int:
    cfg = config.parse(Options, sys.argv[1:], prog="sliding.py", description=__doc__ or "")
    device, size = pick_device(cfg.device), parse_size(cfg.image_size)
    backbone = load_backbone(None, cfg.student, {"img_size": size})
    model = Segmenter(backbone, build_head(cfg.head, backbone.channels, CLASSES)).to(device).eval()
    data = Noise(cfg.images, parse_size(cfg.image))
    how = Inference(Windows(size, parse_size(cfg.stride)))
    recorder = Recorder(model)

    def infer(target: Segmenter | Recorder) -> None:
        confusion(target, data, size, how=how, batch_size=cfg.batch_size, workers=cfg.workers, device=device)

    @torch.no_grad()
    def forward() -> None:
        for batch in recorder.batches:
            model.logits(batch)

    infer(recorder)
    forward()
    times = [(seconds(lambda: infer(model), device), seconds(forward, device)) for _ in range(cfg.repeats)]
    whole, bare = (statistics.median(column) for column in zip(*times, strict=True))
    record = {
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {device}",
        "date": time.strftime("%Y-%m-%d"),
        "scaled": list(prepare(data[0].image, size).shape[1:]),
        "windows": sum(len(batch) for batch in recorder.batches),
        "images/s": round(cfg.images / whole, 3),
        "images/s of the forward": round(cfg.images / bare, 3),
        "ratio": round(bare / whole, 3),
    }
    console.out.print_json(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(console.run(main))
