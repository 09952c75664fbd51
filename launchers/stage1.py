"""Stage 1, for a launcher: ``deepspeed launchers/stage1.py --ds-config zero2.json``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gkd_scale.demo import defaults
from gkd_scale.distill.config import LIVE, Stage1Config
from gkd_scale.engine import loggers
from gkd_scale.engine.launch import start
from gkd_scale.memory import collector_paused

if TYPE_CHECKING:  # a mistyped flag does not wait for torch
    from gkd_scale.cache.source import Source
    from gkd_scale.engine.runtime import Runtime

EXAMPLES = """\
  deepspeed launchers/stage1.py --ds-config zero2.json
  deepspeed launchers/stage1.py --ds-config zero2.json --cache caches/proxy --student vit_small_patch16_224 \\
      --out runs/1a --epochs 100 --global-batch 512
  deepspeed launchers/stage1.py --ds-config zero2.json --cache caches/source --student-weights runs/1a \\
      --student vit_small_patch16_224 --out runs/1b --epochs 300 --global-batch 128
is a configuration for 512 GPUs right, and what will it take? (one process, nothing is written):
  python launchers/stage1.py --dry-run --world 512 --ds-config zero2.json --cache caches/proxy --out runs/1a
two students from the same batches:
  deepspeed launchers/stage1.py --cache caches/proxy --student vit_tiny_patch16_224 \\
      --student vit_small_patch16_224 --out runs/both
  deepspeed launchers/stage1.py --teacher live --live images=imagenet/train image_size=224 \\
      teacher=vit_base_patch14_dinov2.lvd142m --student vit_tiny_patch16_224 --out runs/live
"""


def run(cfg: Stage1Config, runtime: Runtime, launchers: Path) -> None:
    """Stage 1; on the embedded proxy images if no cache or images are named."""
    runtime.on_main(lambda: loggers.require(cfg.run.loggers()))  # before data is made
    make = not cfg.run.dry_run
    if cfg.source.teacher == LIVE and not cfg.source.live:
        cfg.source.live = runtime.on_main(lambda: defaults.proxy_recipe(make=make))
    elif cfg.source.teacher != LIVE and not cfg.source.cache:
        cfg.source.cache = [runtime.on_main(lambda: defaults.proxy_cache(make=make))]
    with collector_paused(freeze=True):
        from gkd_scale.distill import stage1
    stage1.train(cfg, runtime, launchers, open_labels=partial(open_labels, quiet=not runtime.main))


def open_labels(images: str, quiet: bool) -> Source | None:
    """The labelled dataset that ``--live images=ADAPTER:PATH`` names."""
    from gkd_scale.segment.datasets import registry  # here, as a cache needs none of it

    return registry.open_labels(images, quiet=quiet)


if __name__ == "__main__":
    start(
        Stage1Config,
        run,
        __file__,
        description="Distil a student from cached teacher features, without a label.",
        examples=EXAMPLES,
        ranks=lambda cfg: cfg.run.world,
    )
