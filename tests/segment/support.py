"""Small real data: labelled folders on disk, datasets in memory, and a backbone of one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale.models.backbone import Backbone, load_backbone
from gkd_scale.segment import export
from gkd_scale.segment.heads.base import SegHead
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import IGNORE, SegSample, Size, UInt8Array

COLOURS = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 120)], np.uint8)
"""The colour of each class: images are pictures of their labels."""

CLASSES = ("red", "green", "blue", "grey")


def blocks(size: Size, seed: int, void: bool = False) -> UInt8Array:
    """A label of rectangles, one class each; with ``void`` a corner is ignored."""
    rng = np.random.default_rng(seed)
    height, width = size
    label = np.full(size, seed % len(CLASSES), np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, height), rng.integers(0, width)
        label[top : top + height // 2, left : left + width // 2] = rng.integers(0, len(CLASSES))
    if void:
        label[: height // 4, : width // 4] = IGNORE
    return label


def picture(label: UInt8Array) -> UInt8Array:
    """The label in its classes' colours; white where it is ignored."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(COLOURS)] = COLOURS
    return table[label]


class Blocks:
    """A dataset in memory; ``sizes`` are repeated over its images."""

    name = "blocks"
    classes: Sequence[str] = CLASSES
    palette: Sequence[tuple[int, int, int]] = tuple((int(r), int(g), int(b)) for r, g, b in COLOURS)
    absent: Sequence[str] = ()

    def __init__(self, images: int, sizes: Sequence[Size] = ((32, 48),), void: bool = True) -> None:
        labels = [blocks(sizes[index % len(sizes)], index, void) for index in range(images)]
        self.samples = [SegSample(f"{i:03d}", picture(label), label) for i, label in enumerate(labels)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> SegSample:
        return self.samples[index]

    def label(self, index: int) -> UInt8Array:
        return self.samples[index].label


def write_folder(root: Path, dataset: Blocks, classes: bool = True) -> Path:
    """``dataset`` in the layout of the folder adapter."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for sample in dataset.samples:
        Image.fromarray(sample.image).save(root / "images" / f"{sample.name}.png")
        Image.fromarray(sample.label).save(root / "labels" / f"{sample.name}.png")
    if classes:
        (root / "classes.txt").write_text("\n".join(dataset.classes) + "\n")
    return root


def tiny_backbone(seed: int = 0) -> Backbone:
    """A vision transformer of two blocks, patch 8."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return load_backbone(None, "demo_student", {"depth": 4, "embed_dim": 24, "num_heads": 2})


def tiny_segmenter(head: str = "linear", *, frozen: bool = True) -> Segmenter:
    """A segmenter of the four colours with random weights."""
    backbone = tiny_backbone()
    return Segmenter(backbone, build_head(head, backbone.channels, len(CLASSES)), frozen=frozen)


def write_run(folder: Path) -> Path:
    """A finished stage-2 run with random weights whose classes differ from pixel to pixel; size 32x48."""
    segmenter = tiny_segmenter()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in segmenter.head.parameters():
            parameter.normal_()
    segmenter.backbone.save(folder)
    export.save_head(folder, segmenter.head)
    palette = [(int(r), int(g), int(b)) for r, g, b in COLOURS]
    export.save_card(folder, export.Card("linear", {}, list(CLASSES), palette, (32, 48), "frozen", 1, 50.0))
    return folder


def pyramid(channels: Sequence[int], size: Size, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Four random maps at strides 4 to 32 of ``size``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, width, -(-size[0] // stride), -(-size[1] // stride), generator=generator)
        for width, stride in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def state_of(head: SegHead) -> dict[str, Tensor]:
    """A copy of a head's state."""
    return {name: value.clone() for name, value in head.state_dict().items()}
