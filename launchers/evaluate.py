"""Evaluation on several ranks, for a launcher: ``deepspeed launchers/evaluate.py RUN --data NAME=REF``.

On one process it is ``gkd-scale evaluate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gkd_scale.engine.launch import start
from gkd_scale.memory import collector_paused
from gkd_scale.segment.config import EvaluateConfig

if TYPE_CHECKING:  # a mistyped flag does not wait for torch
    from gkd_scale.engine.runtime import Runtime

EXAMPLES = """\
  deepspeed launchers/evaluate.py runs/stage2 --data dusk=camvid:camvid/unseen_dusk
  torchrun --nproc-per-node 8 launchers/evaluate.py runs/stage2 --data night=folder:elsewhere/night \\
      --inference slide --window 512 --stride 341
"""


def run(cfg: EvaluateConfig, runtime: Runtime, _launchers: Path) -> None:
    """Every rank scores its share; rank 0 writes and prints."""
    with collector_paused(freeze=True):
        from gkd_scale.segment.evaluate import evaluate
    evaluate(cfg, runtime)


if __name__ == "__main__":
    start(
        EvaluateConfig,
        run,
        __file__,
        description="Measure the mIoU of a stage-2 run, one domain for each --data, on all ranks.",
        examples=EXAMPLES,
    )
