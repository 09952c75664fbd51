"""Stage 2, for a launcher: ``deepspeed launchers/stage2.py --ds-config zero2.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gkd_scale.demo import defaults
from gkd_scale.engine import loggers
from gkd_scale.engine.launch import start
from gkd_scale.memory import collector_paused
from gkd_scale.segment.config import Stage2Config

if TYPE_CHECKING:  # a mistyped flag does not wait for torch
    from gkd_scale.engine.runtime import Runtime

EXAMPLES = """\
  deepspeed launchers/stage2.py --ds-config zero2.json
  deepspeed launchers/stage2.py --ds-config zero2.json --backbone runs/1b --student vit_small_patch16_224 \\
      --train camvid:camvid/source_day --val camvid:camvid/val_day --head fpn --image-size 160x192 \\
      --out runs/stage2 --steps 4000
  python launchers/stage2.py --dry-run --world 64 --backbone runs/1b --image-size 160x192 \\
      --train camvid:camvid/source_day --val camvid:camvid/val_day
  deepspeed launchers/stage2.py --ds-config zero2.json --method cwd \\
      --teacher vit_base_patch14_dinov2.lvd142m --teacher-patch 16 \\
      --backbone pretrained --student vit_small_patch16_224 --train gtav:data/gtav \\
      --val cityscapes:data/cityscapes@val --image-size 512 --out runs/cwd --steps 40000
"""


def run(cfg: Stage2Config, runtime: Runtime, launchers: Path) -> None:
    """Stage 2; on the embedded scenes if no dataset is named."""
    runtime.on_main(lambda: loggers.require(cfg.run.loggers()))  # before data is made
    if not cfg.data.train and not cfg.run.dry_run:
        runtime.on_main(defaults.data)
    with collector_paused(freeze=True):
        from gkd_scale.segment import stage2
    stage2.run(cfg, runtime, launchers)


if __name__ == "__main__":
    start(
        Stage2Config,
        run,
        __file__,
        description="Train a segmentation head on a frozen backbone, from source-domain labels.",
        examples=EXAMPLES,
        ranks=lambda cfg: cfg.run.world,
    )
