"""``gkd-scale predict`` against the bare forward of the same batches: images/s of each, alternating.

    python benchmarks/predict_speed.py --images ../shared/camvid/source_day/images

The segmenter is a ViT-S/16 with an FPN head and random weights at 256x320. The bare forward takes the same
prepared batches from memory; predict reads, decodes, scales, classifies, and writes masks. Both on all cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gkd_scale.images import open_image
from gkd_scale.models.backbone import load_backbone
from gkd_scale.segment import export
from gkd_scale.segment.config import PredictConfig
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.inference import pad_to_stride, prepare
from gkd_scale.segment.predict import predict
from gkd_scale.segment.segmenter import Segmenter

SIZE, BATCH, CLASSES = (256, 320), 8, 11


def write_run(folder: Path, student: str, head: str) -> Segmenter:
    """A finished stage-2 run with random weights."""
    backbone = load_backbone(None, student, {})
    segmenter = Segmenter(backbone, build_head(head, backbone.channels, CLASSES), frozen=True)
    segmenter.backbone.save(folder)
    export.save_head(folder, segmenter.head)
    names = [f"class {index}" for index in range(CLASSES)]
    palette = [(20 * index, 0, 0) for index in range(CLASSES)]
    export.save_card(folder, export.Card(head, {}, names, palette, SIZE, "frozen", 1, 0.0))
    return export.load_segmenter(folder)[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--student", default="vit_small_patch16_224")
    parser.add_argument("--head", default="fpn")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    paths = sorted(path for path in args.images.iterdir() if path.is_file())[: args.count]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        for path in paths:
            (root / "images" / path.name).symlink_to(path.resolve())
        segmenter = write_run(root / "run", args.student, args.head)
        views = [prepare(np.asarray(open_image(path).image), SIZE) for path in paths]
        batches = [torch.stack(views[at : at + BATCH]) for at in range(0, len(views), BATCH)]
        batches = [pad_to_stride(batch, segmenter.stride, segmenter.fill) for batch in batches]
        ratios = []
        for number in range(args.rounds + 1):
            began = time.perf_counter()
            with torch.no_grad():
                for batch in batches:
                    segmenter.logits(batch)
            bare = len(paths) / (time.perf_counter() - began)
            began = time.perf_counter()
            out = root / f"out{number}"
            predict(
                PredictConfig(
                    run=root / "run", images=str(root / "images"), out=out, batch_size=BATCH, device="cpu"
                )
            )
            whole = len(paths) / (time.perf_counter() - began)
            if number:  # the first round warms up
                ratios.append(whole / bare)
                print(f"bare {bare:.2f} images/s, predict {whole:.2f}: {whole / bare:.3f}")
    print(f"median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
