"""What helps QSD to start on a convolutional teacher: token normalisation, and the form of the attention.

Teacher: MobileNetV2, ImageNet-1k weights, features at stride 16. Images: ImageNet, one centred view of each;
every fifth is held out. Student: a ViT 96 wide and 4 deep, from scratch, L_feat and L_cls, the same batches
for every row. The number is the share of the variance of held-out teacher tokens that the student's soft
tokens leave unexplained: 1 is what the mean token alone achieves, whatever the scale of the tokens.

    python benchmarks/qsd_levers.py
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from gkd_scale import config, console
from gkd_scale.config import option
from gkd_scale.distill.config import LossConfig, QsdConfig
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.engine.schedule import cosine
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.students import load_student
from gkd_scale.randomness import generator, seed_of
from gkd_scale.types import Batch, Features

SHARED = Path(__file__).parents[2] / "shared"
SIZE = (144, 192)
STUDENT = {"embed_dim": 96, "depth": 4, "num_heads": 3, "img_size": SIZE}
FORMS = {
    "published": QsdConfig(),
    "zero-query": QsdConfig(init="zero-query"),
    "sqrt": QsdConfig(scale="sqrt"),
    "mse": QsdConfig(form="mse"),
}


@dataclass
class Options:
    """Compare the levers of QSD on a convolutional teacher."""

    images: int = option(500, "images, a fifth of them held out")
    steps: int = option(120, "optimizer steps of each row")
    batch: int = option(32, "images a step")
    lr: float = option(1e-3, "peak learning rate, warmed up over a tenth of the steps, then cosine")
    seed: int = option(0, "seed of student and order")


def batch_of(pixels: Tensor, features: Features, rows: Tensor) -> Batch:
    count = len(rows)
    teacher = Features(features.cls[rows], features.patches[rows])
    return Batch(pixels[rows], teacher, ("",) * count, (0,) * count, tuple(range(count)))


def train(
    cfg: Options, norm: str, form: QsdConfig, pixels: Tensor, features: Features, grid: tuple[int, int]
) -> float:
    """The unexplained share of the held-out tokens' variance."""
    torch.manual_seed(seed_of("init", cfg.seed))
    student = load_student("vit_tiny_patch16_224", SIZE, grid, args=dict(STUDENT))
    dim = features.patches.shape[2]
    conditioning = Conditioning(norm)
    space = TeacherSpace(dim, grid, conditioning)
    module = Distiller(student, space, loss=LossConfig(mask_weight=0), qsd=form)
    optimizer = torch.optim.AdamW(module.parameters(), cfg.lr, weight_decay=0.05)
    held_out = torch.arange(0, len(pixels), 5)
    train_rows = torch.tensor([row for row in range(len(pixels)) if row % 5])
    for step in range(cfg.steps):
        optimizer.param_groups[0]["lr"] = cosine(step, base=cfg.lr, steps=cfg.steps, warmup=cfg.steps // 10)
        rows = generator("levers", cfg.seed, step).choice(len(train_rows), cfg.batch, replace=False)
        batch = batch_of(pixels, features, train_rows[torch.from_numpy(rows)])
        loss = module(module.draws.add(batch))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        target = conditioning(Features(features.cls[held_out], features.patches[held_out])).patches
        prediction = module.head_feature(module.features(pixels[held_out]).patches, target)
    return float((prediction - target).square().mean() / (target - target.mean((0, 1))).square().mean())


def main() -> int:
    cfg = config.parse(Options, sys.argv[1:], prog="qsd_levers.py", description=__doc__ or "")
    if not SHARED.is_dir():
        console.err.print(f"no {SHARED} here: this benchmark reads its images there")
        return 2
    paths = sorted((SHARED / "proxy_imagenet/images").rglob("*.*"))[: cfg.images]
    images = [F.pil_to_tensor(Image.open(path).convert("RGB")) for path in paths]
    pixels = torch.stack([F.resize(image, list(SIZE), antialias=True) for image in images])
    weights = SHARED / "teacher/mobilenetv2_100_imagenet1k.safetensors"
    half = (0.5, 0.5, 0.5)
    teacher = load_teacher(
        TeacherConfig(
            "mobilenetv2_100", weights=weights, args={"pad_type": "same"}, layer=(3,), mean=half, std=half
        ),
        SIZE,
    )
    parts = [teacher(part) for part in pixels.split(32)]
    features = Features(*(torch.cat(group) for group in zip(*parts, strict=True)))
    size = float(features.patches.square().mean())
    console.out.print(f"{len(pixels)} images; mean square of the teacher's tokens: {size:.1f}")
    for norm, (name, form) in product(("none", "layer"), FORMS.items()):
        began = time.monotonic()
        share = train(cfg, norm, form, pixels, features, teacher.grid)
        console.out.print(
            f"norm {norm:<6} {name:<11} unexplained {share:.3f}   {time.monotonic() - began:.0f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(console.run(main))
