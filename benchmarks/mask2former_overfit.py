"""Can the Mask2Former head learn? Eight CamVid frames by heart, on a frozen backbone.

The head is the small decoder, the backbone the MobileNetV2 of ../shared with its ImageNet weights, at the
frames' own size. Without augmentation the features of a frozen backbone do not change, so they are computed
once and each step costs the head alone. mIoU is that of ``gkd-scale evaluate``: own semantic inference, at
ground-truth size. The eight frames are both training and test data: this measures whether head, loss and
scoring fit together, and nothing else.

    python benchmarks/mask2former_overfit.py
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gkd_scale import config, console
from gkd_scale.config import option
from gkd_scale.engine.schedule import poly
from gkd_scale.memory import keep_freed
from gkd_scale.models.backbone import Backbone, load_backbone
from gkd_scale.randomness import generator, seed_of
from gkd_scale.segment.datasets.registry import open_dataset
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.inference import confusion, prepare
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import SegDataset, SegSample

SHARED = Path(__file__).parents[2] / "shared"
FRAMES = 8
SIZE = (360, 480)


@dataclass
class Options:
    """Learn eight frames by heart."""

    steps: int = option(1800, "optimizer steps")
    batch: int = option(2, "frames a step")
    lr: float = option(1e-3, "peak learning rate")
    head_args: list[str] = option([], "arguments of the head besides size=small, as KEY=NUMBER")
    seed: int = option(0, "decides the head, the order and the sampled points")


class First:
    """Frames of a dataset, evenly spread over it."""

    def __init__(self, dataset: SegDataset, count: int) -> None:
        self.name, self.classes, self.palette = dataset.name, dataset.classes, dataset.palette
        self.absent = dataset.absent
        self._samples = [dataset[index * len(dataset) // count] for index in range(count)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> SegSample:
        return self._samples[index]


def main() -> int:
    cfg = config.parse(Options, sys.argv[1:], prog="mask2former_overfit.py", description=__doc__ or "")
    if not SHARED.is_dir():
        console.err.print(f"no {SHARED} here: this benchmark reads its images there")
        return 2
    keep_freed()
    began = time.monotonic()
    frames = First(open_dataset(f"camvid:{SHARED / 'camvid/source_day'}"), FRAMES)
    weights = SHARED / "teacher/mobilenetv2_100_imagenet1k.safetensors"
    base = load_backbone(weights, "mobilenetv2_100", {"pad_type": "same"})
    backbone = Backbone(base.net, replace(base.spec, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    args = {key: int(value) for key, value in (item.split("=") for item in cfg.head_args)}
    head = build_head(
        "mask2former", backbone.channels, len(frames.classes), {"size": "small", **args}, seed=cfg.seed
    )
    model = Segmenter(backbone, head)
    with torch.no_grad():
        pixels = torch.stack([prepare(frames[index].image, SIZE) for index in range(FRAMES)])
        features = model.features(pixels)
    labels = torch.stack([torch.from_numpy(frames[index].label.copy()) for index in range(FRAMES)])
    optimizer = torch.optim.AdamW(head.parameters(), cfg.lr, weight_decay=0.0)
    losses: list[float] = []
    miou: dict[int, float] = {}
    for step in range(cfg.steps):
        for group in optimizer.param_groups:
            group["lr"] = poly(step, base=cfg.lr, steps=cfg.steps, power=0.9, warmup=20, warmup_lr=1e-6)
        order = generator("overfit", cfg.seed, step * cfg.batch // FRAMES).permutation(FRAMES)
        rows = torch.from_numpy(order[step * cfg.batch % FRAMES :][: cfg.batch])
        torch.manual_seed(seed_of("overfit", cfg.seed, step))
        optimizer.zero_grad()
        loss = head.losses([item[rows] for item in features], labels[rows])["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == cfg.steps:
            model.eval()
            miou[step + 1] = round(100 * confusion(model, frames, SIZE).miou(), 2)
            model.train()
            minutes = (time.monotonic() - began) / 60
            mean = sum(losses[-50:]) / len(losses[-50:])
            console.out.print(f"step {step + 1}  loss {mean:.2f}  mIoU {miou[step + 1]}  {minutes:.1f} min")
    record = {
        "command": " ".join(sys.argv),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU",
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "parameters": sum(item.numel() for item in head.parameters()),
        "loss": {"first": round(losses[0], 2), "last": round(losses[-1], 2)},
        "miou": miou,
    }
    console.out.print_json(json.dumps(record))
    return 0 if miou[cfg.steps] > 90 else 1


if __name__ == "__main__":
    sys.exit(console.run(main))
