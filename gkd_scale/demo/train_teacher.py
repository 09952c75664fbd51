"""Train the demo teacher: a small ViT that stands in for a foundation model without a download.

``python -m gkd_scale.demo.train_teacher --out gkd_scale/models/weights --minutes 22 --seed 0``

The teacher learns to segment thousands of generated scenes, each in a random style: mixed
palettes, layouts, times of day and weathers. The named domains, source and unseen alike, are not
used: their scenes come from generators of other names, their styles are no draw from the style
space. The package ships the encoder alone, in fp16, and a card with measurements: a linear
probe on its frozen tokens, trained on the labels of ``source`` only, against a small network
trained end to end on the same labels.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save
from torch import Tensor, nn

from gkd_scale import files, scenes
from gkd_scale.models import spec as specs
from gkd_scale.models.spec import ModelSpec
from gkd_scale.randomness import generator, seed_of
from gkd_scale.segment.metrics import Confusion

TEACHER = ModelSpec(
    "vit_tiny_patch16_224",
    {
        "patch_size": 8,
        "img_size": [*scenes.SIZE],
        "embed_dim": 128,
        "depth": 5,
        "num_heads": 4,
        "mlp_ratio": 3.0,
    },
)
BASELINE = ModelSpec(
    "vit_tiny_patch16_224",
    {"patch_size": 8, "img_size": [*scenes.SIZE], "embed_dim": 96, "depth": 4, "num_heads": 3},
)
LIMIT = 2_000_000
"""The most bytes that the shipped weights may have."""

CLASSES = len(scenes.CLASSES)


@dataclass(frozen=True)
class Scenes:
    """``images`` (n, 3, H, W) and ``labels`` (n, H, W), uint8."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class TeacherNet(nn.Module):
    """An encoder with two heads: class logits on the token grid, and logits of the classes' presence."""

    mean: Tensor
    std: Tensor
    head: nn.Sequential

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.net: Any = specs.create(spec)
        dim, patch = int(spec.args["embed_dim"]), int(spec.args["patch_size"])
        self.grid = (scenes.SIZE[0] // patch, scenes.SIZE[1] // patch)
        self.head = nn.Sequential(nn.BatchNorm2d(dim), nn.Conv2d(dim, CLASSES, 1))
        self.presence = nn.Linear(dim, CLASSES)
        self.register_buffer("mean", 255 * torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(spec.std).view(3, 1, 1))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """CLS (B, C) and the token map (B, C, h, w) of images (B, 3, H, W) in 0..255."""
        tokens = self.net.forward_features((images.float() - self.mean) / self.std)
        return tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, h, w) and presence logits (B, K)."""
        cls, tokens = self.encode(images)
        return self.head(tokens), self.presence(cls)


def render_styles(count: int, seed: int) -> Scenes:
    """``count`` scenes, each in a random style."""
    random_seeds = {seed_of("scenes", "random", seed, index) for index in range(count)}
    domain_seeds = {seed_of("scenes", name, seed, index) for name in scenes.DOMAINS for index in range(1000)}
    assert "random" not in scenes.DOMAINS and not random_seeds & domain_seeds, (
        "a domain's scenes are not for training"
    )
    return _stack(scenes.render_random(index, scenes.SIZE, seed) for index in range(count))


def render_domain(domain: str, indices: range) -> Scenes:
    """Scenes of a named domain."""
    return _stack(scenes.render(domain, index) for index in indices)


def _stack(pairs: Iterator[tuple[Any, Any]]) -> Scenes:
    images, labels = zip(*pairs, strict=True)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Scenes(pixels, torch.from_numpy(np.stack(labels)))


def augment(images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random zoom, shift and flip of both; random gain, tint, contrast and grey of the image."""
    count = len(images)
    zoom = torch.from_numpy(rng.uniform(0.6, 1.05, count).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-1, 1, (count, 2)).astype(np.float32)) * (1 - zoom).clamp(0)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = zoom * torch.from_numpy(rng.choice((-1.0, 1.0), count).astype(np.float32))
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [count, 1, *images.shape[2:]], align_corners=False)
    pixels = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    targets = F.grid_sample(
        labels[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    gain = torch.from_numpy(rng.uniform(0.7, 1.35, (count, 1, 1, 1)).astype(np.float32))
    tint = torch.from_numpy(rng.uniform(0.9, 1.1, (count, 3, 1, 1)).astype(np.float32))
    contrast = torch.from_numpy(rng.uniform(0.7, 1.25, (count, 1, 1, 1)).astype(np.float32))
    grey = torch.from_numpy((0.7 * rng.random((count, 1, 1, 1)) ** 3).astype(np.float32))
    middle = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (middle + contrast * (pixels - middle)) * gain * tint
    pixels = pixels + grey * (pixels.mean(1, keepdim=True) - pixels)
    return pixels.clamp(0, 255), targets[:, 0].long()


def class_weights(labels: Tensor) -> Tensor:
    """(K,) weights that grow with a class's rarity, by the square root, 1 on average over pixels."""
    counts = torch.bincount(labels.flatten().long(), minlength=CLASSES).double().clamp(min=1.0)
    weights = counts.rsqrt()
    return (weights * counts.sum() / (weights * counts).sum()).float()


def segmentation_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy at half the size of ``labels`` (B, H, W)."""
    half = labels[:, 1::2, 1::2]
    return F.cross_entropy(F.interpolate(logits, half.shape[1:], mode="bilinear"), half, weights)


def presence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the presence logits: a class is present above half a percent of the image."""
    share = F.one_hot(labels[:, ::2, ::2].flatten(1), CLASSES).float().mean(1)
    return F.binary_cross_entropy_with_logits(logits, (share > 0.005).float())


def schedule(progress: float, peak: float) -> float:
    """Linear warm-up over 4 % of the run, then a cosine to 1 % of ``peak``."""
    if progress < 0.04:
        return peak * (0.02 + 0.98 * progress / 0.04)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.04) / 0.96))))


def optimizer_of(model: nn.Module, decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))


def train_teacher(
    data: Scenes, minutes: float, seed: int, batch: int = 32, peak: float = 1.5e-3
) -> TeacherNet:
    """Train for ``minutes`` of wall time; returns the exponential moving average of the weights."""
    torch.manual_seed(seed_of("demo-teacher", seed))
    model, average = TeacherNet(TEACHER), TeacherNet(TEACHER)
    average.load_state_dict(model.state_dict())
    optimizer, weights = optimizer_of(model), class_weights(data.labels)
    rng = generator("demo-teacher", "batches", seed)
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule(progress, peak)
        indices = torch.from_numpy(rng.integers(0, len(data), batch))
        images, labels = augment(data.images[indices], data.labels[indices], rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits, presence = model(images)
        loss = segmentation_loss(logits.float(), labels, weights)
        loss = loss + 0.2 * presence_loss(presence.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_average(average, model, min(0.998, (step + 1) / (step + 10)))
        if step % 50 == 0:
            print(f"{progress:6.1%}  step {step}  loss {loss.item():.4f}", flush=True)
        step += 1
    print(f"{step} steps of {batch} images")
    return average.eval()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move ``average`` towards ``model``; buffers (batch norm's) are copied."""
    for mean, new in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(new, 1 - keep)
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)


def train_on_source(model: TeacherNet, train: Scenes, steps: int, seed: int, *, frozen: bool) -> TeacherNet:
    """Train the head alone (``frozen``, the probe) or everything (the baseline) on source labels."""
    torch.manual_seed(seed_of("source", seed))
    for layer in model.head:
        layer.reset_parameters()  # type: ignore[operator]
    model.train(not frozen)
    model.head.train()
    optimizer = optimizer_of(model.head if frozen else model)
    rng = generator("demo-teacher", "source", seed)
    weights = class_weights(train.labels)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step / steps, 5e-3 if frozen else 1e-3)
        indices = torch.from_numpy(rng.integers(0, len(train), 16))
        images, labels = augment(train.images[indices], train.labels[indices], rng)
        with torch.set_grad_enabled(not frozen):
            tokens = model.encode(images)[1]
        loss = segmentation_loss(model.head(tokens), labels, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def miou(model: TeacherNet, data: Scenes) -> float:
    """Mean IoU in percent: one int64 confusion over all pixels, mean over the classes that occur."""
    confusion = Confusion(CLASSES)
    for images, labels in zip(data.images.split(32), data.labels.split(32), strict=True):
        logits = F.interpolate(model(images)[0], labels.shape[1:], mode="bilinear")
        confusion.update(logits.argmax(1), labels)
    return 100 * confusion.miou()


def compare(teacher: TeacherNet, seed: int) -> dict[str, dict[str, float]]:
    """mIoU by domain of the teacher's linear probe and of the baseline, trained on source labels only."""
    train = render_domain("source", scenes.SPLITS["train"][:200])
    probe = train_on_source(teacher, train, 300, seed, frozen=True)
    torch.manual_seed(seed_of("baseline", seed))
    baseline = train_on_source(TeacherNet(BASELINE), train, 600, seed, frozen=False)
    result: dict[str, dict[str, float]] = {"teacher, linear probe": {}, "from scratch": {}}
    for domain in scenes.DOMAINS:
        indices = scenes.SPLITS["val"][:50] if domain == "source" else range(40)
        data = render_domain(domain, indices)
        for name, model in zip(result, (probe, baseline), strict=True):
            result[name][domain] = round(miou(model, data), 1)
    return result


def export(teacher: TeacherNet, out: Path, command: str, scores: dict[str, Any]) -> None:
    """Write the encoder as fp16 safetensors, then its card."""
    state = {name: tensor.half().contiguous() for name, tensor in teacher.net.state_dict().items()}
    data = save(state)
    assert len(data) <= LIMIT, f"{len(data)} bytes are more than {LIMIT}"
    weights = out / "demo_teacher.safetensors"
    files.write_bytes(weights, data)
    card = {
        "architecture": TEACHER.name,
        "args": {"num_classes": 0, **TEACHER.args},
        "mean": list(TEACHER.mean),
        "std": list(TEACHER.std),
        "image_size": list(scenes.SIZE),
        "sha256": files.sha256_file(weights),
        "command": command,
        "miou": scores,
    }
    files.write_text(out / "demo_teacher.yaml", yaml.safe_dump(card, sort_keys=False))


@torch.no_grad()
def round_to_half(model: TeacherNet) -> None:
    """Round the weights to fp16, so that the measured weights are the shipped ones."""
    for parameter in model.parameters():
        parameter.copy_(parameter.half())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the demo teacher.")
    parser.add_argument("--out", type=Path, required=True, help="folder of demo_teacher.{safetensors,yaml}")
    parser.add_argument("--minutes", type=float, default=22.0, help="training time, without rendering")
    parser.add_argument("--images", type=int, default=6000, help="scenes to render, each in its own style")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    data = render_styles(options.images, options.seed)
    print(f"rendered {len(data)} scenes in {time.monotonic() - start:.0f} s", flush=True)
    teacher = train_teacher(data, options.minutes, options.seed)
    round_to_half(teacher)
    scores = compare(teacher, options.seed)
    for name, values in scores.items():
        print(name, values)
    words = sys.argv[1:] if arguments is None else arguments
    command = f"python -m gkd_scale.demo.train_teacher {shlex.join(words)}"
    export(teacher, options.out, command, scores)


if __name__ == "__main__":
    main()
