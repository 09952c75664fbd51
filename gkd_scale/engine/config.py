"""The options that every training has. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from gkd_scale import ranges
from gkd_scale.config import option
from gkd_scale.engine import loggers, optimizers
from gkd_scale.errors import ConfigError


@dataclass
class OptimConfig:
    """optimizer: with warmup"""

    name: str = option(optimizers.DEFAULT, optimizers.HELP, choices=optimizers.OPTIMIZERS)
    lr: float | None = option(None, "peak learning rate", flag="--lr", within=ranges.PEAK_RATE)
    weight_decay: float = option(0.05, "decoupled weight decay", within=ranges.WEIGHT_DECAY)
    betas: tuple[float, float] = option(
        (0.9, 0.999), "decay of AdamW's or LAMB's moments", within=ranges.DECAY
    )
    warmup: float = option(0.05, "share of the steps that the learning rate rises", within=ranges.WARMUP)
    warmup_lr: float = option(1e-6, "learning rate of the first step", within=ranges.RATE)

    def __post_init__(self) -> None:
        for item in fields(self):
            rate = getattr(self, item.name)
            if item.name.endswith("_lr") and self.lr is not None and rate > self.lr and rate != item.default:
                raise ConfigError(
                    f"'optim.{item.name}' is {rate:g}, above the peak learning rate, {self.lr:g}",
                    "give a smaller one",
                )


@dataclass
class RunConfig:
    """run: its folder, length, checkpoints and logs"""

    ds_config: str = option(
        "zero2.json", "DeepSpeed JSON: a path, or the name of a bundled one", volatile=True
    )
    out: Path = option(Path("runs/train"), "run folder; the same command again resumes", volatile=True)
    steps: int | None = option(None, "optimizer steps", within=ranges.COUNT, volatile=True)
    global_batch: int | None = option(
        None, "images an optimizer step, over all ranks", within=ranges.SIZE, volatile=True
    )
    save_every: int = option(200, "steps between checkpoints", within=ranges.COUNT, volatile=True)
    keep: int = option(2, "newest checkpoints kept", within=ranges.COUNT, volatile=True)
    keep_every: int | None = option(
        None, "keep each N-th step's checkpoint too", metavar="N", within=ranges.COUNT, volatile=True
    )
    workers: int = option(2, "threads that read and decode, a rank", within=ranges.THREADS, volatile=True)
    log: list[str] = option(list(loggers.DEFAULT), loggers.HELP, choices=loggers.CHOICES, volatile=True)
    seed: int = option(0, "decides everything that is drawn at random", within=ranges.SEED)
    timeout_minutes: float = option(
        30.0,
        "minutes that ranks wait for a late one in a step; then all end, and the late one is named",
        within=ranges.MINUTES,
        volatile=True,
    )
    dry_run: bool = option(
        False, "check everything, measure a few steps, say what the run needs; write nothing", volatile=True
    )
    world: int | None = option(
        None,
        "with --dry-run: plan for N ranks without having them (default: the ranks that are launched)",
        metavar="N",
        within=ranges.RANKS,
        volatile=True,
    )

    def __post_init__(self) -> None:
        self.loggers()
        if self.world is not None and not self.dry_run:
            raise ConfigError(
                f"--world is {self.world} without --dry-run",
                "add --dry-run; a launcher decides the number of ranks of a run",
            )

    def loggers(self) -> list[str]:
        """The loggers of ``log``; ConfigError for none beside others."""
        return loggers.select(self.log)
