"""The options of ``gkd-scale demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gkd_scale import ranges
from gkd_scale.config import option


@dataclass
class DemoConfig:
    """Run the whole method on the embedded scenes."""

    out: Path = option(Path("runs/demo"), "folder for data, caches, runs and results")
    launchers: Path = option(Path("launchers"), "folder of stage1.py and stage2.py")
    ds_config: str = option("zero2.json", "DeepSpeed JSON")
    proxy_steps: int = option(350, "steps of the task-agnostic phase", within=ranges.COUNT)
    source_steps: int = option(450, "steps of the domain-agnostic phase", within=ranges.COUNT)
    head_steps: int = option(200, "steps of stage 2", within=ranges.COUNT)
    batch: int = option(16, "images a step of stage 1", within=ranges.SIZE)
    lr: float = option(2e-3, "peak learning rate of stage 1", within=ranges.PEAK_RATE)
    seed: int = option(0, "seed of everything", within=ranges.SEED)


@dataclass
class MakeDataConfig:
    """Write the embedded scenes."""

    out: Path = option(help="folder to write", positional=True)
    size: str = option("96x128", "image size in pixels", metavar="HxW")
    proxy: int = option(600, "proxy images, unlabelled", within=ranges.NUMBER)
    train: int = option(200, "source-domain training images", within=ranges.NUMBER)
    val: int = option(50, "source-domain validation images", within=ranges.NUMBER)
    test: int = option(40, "images of each unseen domain", within=ranges.NUMBER)
    seed: int = option(0, "seed of the generator", within=ranges.SEED)
