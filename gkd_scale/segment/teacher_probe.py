"""``gkd-scale probe``: the mIoU of a teacher's feature levels, and the statistics that would spoil MSE.

One pass of the teacher over the training images fits a ridge classifier for every level and measures its
tokens; a second, over the validation images, scores the classifiers as mIoU at ground-truth size. If tokens
have a large mean, or a few loud principal components or channels, a squared error is spent on parts without
class information (arXiv 2410.01680, section 3); ``--teacher-norm`` is against that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.table import Table
from torch import Tensor

from gkd_scale import console, files
from gkd_scale.cache.config import parse_size
from gkd_scale.commands import flag
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.tokens import to_map, to_tokens
from gkd_scale.moments import Moments
from gkd_scale.segment.config import TeacherProbeConfig
from gkd_scale.segment.datasets.registry import glance, open_all, require_shown
from gkd_scale.segment.metrics import Confusion
from gkd_scale.segment.probe import Examples, Ridge, class_shares, load, shown_in, tally
from gkd_scale.types import LiveTeacher

COMPONENTS = (1, 4, 16, 64)
LOUD_CHANNEL = 5.0
"""A channel whose standard deviation is above this multiple of the median is an outlier."""
ARTEFACT = 3.0
"""Tokens of a norm above this multiple of the median are artefacts ("Vision Transformers Need Registers")."""
TOKENS_A_CHANNEL = 20
"""Whitening needs this many training tokens a channel; with fewer, ``standard`` is advised."""


@dataclass(frozen=True)
class Level:
    """One feature level. Shares are from 0 to 1; ``layer`` None is the default, after the final norm.

    ``mean_power`` is |mean|² over the mean squared norm; ``components`` the shares of the variance in the
    first 1, 4, 16 and 64 principal components; ``outlier_channels`` their number; ``artefacts`` the share of
    tokens with a norm far above the median.
    """

    layer: int | None
    dim: int
    grid: tuple[int, int]
    tokens: int
    miou: float
    mean_power: float
    components: tuple[float, ...]
    outlier_channels: int
    artefacts: float

    @property
    def name(self) -> str:
        """For people: ``layer``, or "default"."""
        return "default" if self.layer is None else str(self.layer)


class _Measure:
    """The sums of one level over the training images."""

    def __init__(self, dim: int) -> None:
        self.ridge, self.moments = Ridge(), Moments(dim)
        self.norms: list[Tensor] = []

    def update(self, tokens: Tensor, shares: Tensor) -> None:
        self.ridge.update(tokens, shares)
        self.moments.update(tokens.cpu().numpy())
        self.norms.append(tokens.norm(dim=1).cpu())

    def level(self, layer: int | None, grid: tuple[int, int], miou: float) -> Level:
        mean, covariance = self.moments.mean, self.moments.covariance
        shares, spread = self.moments.shares(), np.sqrt(np.diag(covariance))
        power = float(mean @ mean)
        norms = torch.cat(self.norms)
        return Level(
            layer=layer,
            dim=len(mean),
            grid=grid,
            tokens=self.moments.count,
            miou=miou,
            mean_power=power / max(power + float(np.trace(covariance)), float(np.finfo(float).tiny)),
            components=tuple(float(shares[min(k, len(mean)) - 1]) for k in COMPONENTS),
            outlier_channels=int((spread > LOUD_CHANNEL * np.median(spread)).sum()),
            artefacts=float((norms > ARTEFACT * norms.median()).float().mean()),
        )


def probe_teacher(cfg: TeacherProbeConfig) -> list[Level]:
    """Measure every level, print the table and the flags to use, write ``probe.json`` and ``probe.png``.

    Raises ConfigError, DataError or ModelError.
    """
    size = parse_size(cfg.image_size)
    datasets = [open_all(refs) for refs in (cfg.train, cfg.val)]
    for dataset in datasets:
        glance(dataset)
    train, val = (load(dataset, size, most=cfg.images) for dataset in datasets)
    for dataset, data, least in ((datasets[0], train, 2), (datasets[1], val, 1)):
        require_shown(dataset, shown_in(data), least)
    teacher = load_teacher(cfg.teacher, size, cfg.device)
    levels = measure(teacher, train, val, cfg.batch_size)
    best = choose(levels)
    flags = advice(best)
    console.out.print(_table(levels, best, cfg))
    cache = cfg.out / "cache"
    console.paste("next: ", *_cache_command(cfg, best, cache))
    norm = flags[flags.index("--teacher-norm") :]
    console.paste("then: ", "deepspeed", "launchers/stage1.py", "--cache", cache, *norm)
    console.say(
        f"{100 * best.miou:.1f} mIoU on the validation images is what a linear classifier reads from the "
        "frozen teacher there: a student that copies it can hope for about as much"
    )
    rows = [{**asdict(level), "chosen": level is best} for level in levels]
    facts = {"teacher": cfg.teacher.name, "image_size": list(size), "train": cfg.train, "val": cfg.val}
    files.write_json(cfg.out / "probe.json", {**facts, "levels": rows, "flags": flags}, unlocked=True)
    draw(levels, best, cfg.out / "probe.png")
    console.say(f"written to {cfg.out}: probe.json, probe.png")
    return levels


def measure(
    teacher: LiveTeacher, train: Examples, val: Examples, batch: int, *, quiet: bool = False
) -> list[Level]:
    """All levels of ``teacher``, shallow to deep, then the default one; one pass over each dataset."""
    levels: list[_Measure] = []
    with console.progress(disable=quiet) as bar:
        task = bar.add_task("probe", total=len(train.labels) + len(val.labels))
        for pixels, labels in train.batches(batch):
            maps = teacher.every_level(pixels)
            levels = levels or [_Measure(feature_map.shape[1]) for feature_map in maps]
            for level, feature_map in zip(levels, maps, strict=True):
                grid = (feature_map.shape[2], feature_map.shape[3])
                shares = torch.cat([class_shares(label, train.classes, grid) for label in labels])
                level.update(to_tokens(feature_map).flatten(0, 1), shares.to(feature_map.device))
            bar.advance(task, len(labels))
        classifiers = [level.ridge.solve() for level in levels]
        scores = [Confusion(val.classes) for _ in levels]
        grids: list[tuple[int, int]] = []
        for pixels, labels in val.batches(batch):
            maps = teacher.every_level(pixels)
            grids = [(feature_map.shape[2], feature_map.shape[3]) for feature_map in maps]
            for classify, score, feature_map, grid in zip(classifiers, scores, maps, grids, strict=True):
                logits = torch.stack([classify(tokens) for tokens in to_tokens(feature_map)]).float()
                tally(score, to_map(logits, grid), labels)
            bar.advance(task, len(labels))
    names: list[int | None] = [*range(len(levels) - 1), None]
    return [
        level.level(name, grid, score.miou())
        for level, name, grid, score in zip(levels, names, grids, scores, strict=True)
    ]


def choose(levels: Sequence[Level]) -> Level:
    """The level with the best mIoU; the later one of equals."""
    return max(reversed(levels), key=lambda level: level.miou)


def advice(best: Level) -> list[str]:
    """Flags of ``cache-teacher`` and stage 1 that take ``best``, conditioned."""
    enough = best.tokens >= TOKENS_A_CHANNEL * best.dim
    return [*flag("--teacher-layer", best.layer), "--teacher-norm", "whiten" if enough else "standard"]


def _cache_command(cfg: TeacherProbeConfig, best: Level, out: Path) -> list[object]:
    """The command that caches the probed teacher's ``best`` level for the first of the training images."""
    teacher = cfg.teacher
    return [
        *("gkd-scale", "cache-teacher", "--images", cfg.train[0]),
        *flag("--teacher", teacher.name),
        *flag("--teacher-weights", teacher.weights),
        *flag("--patch-size", teacher.patch_size),
        *flag("--teacher-args", teacher.args),
        *flag("--mean", teacher.mean),
        *flag("--std", teacher.std),
        *flag("--teacher-layer", best.layer),
        *("--image-size", cfg.image_size, "--out", out),
    ]


def _table(levels: Sequence[Level], best: Level, cfg: TeacherProbeConfig) -> Table:
    table = Table(title=f"{cfg.teacher.name} at {cfg.image_size}", title_justify="left", padding=(0, 0))
    names = (
        "layer",
        "tokens",
        "dim",
        "mIoU",
        "mean²\n/power",
        *(f"PC\n{k}" for k in COMPONENTS),
        "loud\nchannels",
        "artefact\ntokens",
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for level in levels:
        numbers = (f"{100 * share:.0f}%" for share in level.components)
        table.add_row(
            level.name,
            f"{level.grid[0]}x{level.grid[1]}",
            str(level.dim),
            f"{100 * level.miou:.1f}",
            f"{level.mean_power:.2f}",
            *numbers,
            str(level.outlier_channels),
            f"{100 * level.artefacts:.1f}%",
            style="bold" if level is best else None,
        )
    return table


def draw(levels: Sequence[Level], best: Level, path: Path) -> None:
    """Bars of mIoU (blue, the best dark), of the first component's share and of mean²/power, by level."""
    bar, height, margin = 18, 220, 40
    width = max(480, margin * 2 + len(levels) * bar * 4)
    picture = Image.new("RGB", (width, height + 2 * margin), "white")
    pen = ImageDraw.Draw(picture)
    for tenth in range(0, 11, 2):
        y = margin + height - tenth * height // 10
        pen.line((margin, y, width - margin, y), fill="#dddddd")
        pen.text((8, y - 6), f"{10 * tenth}", fill="black")
    for index, level in enumerate(levels):
        left = margin + 10 + index * bar * 4
        values = (level.miou, level.components[0], level.mean_power)
        colours = ("#08306b" if level is best else "#4292c6", "#e6851e", "#999999")
        for place, (value, colour) in enumerate(zip(values, colours, strict=True)):
            top = margin + height - round(value * height)
            pen.rectangle(
                (left + place * bar, top, left + (place + 1) * bar - 3, margin + height), fill=colour
            )
        pen.text((left, margin + height + 4), level.name, fill="black")
    pen.text((margin, 8), "mIoU (blue), first component (orange), mean over power (grey), in %", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as file:
        picture.save(file, format="PNG")
