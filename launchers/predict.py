"""Prediction on several ranks, for a launcher: ``deepspeed launchers/predict.py RUN --images PATH``.

On one process it is ``gkd-scale predict``.
"""

from pathlib import Path

from gkd_scale.engine.launch import start
from gkd_scale.engine.runtime import Runtime
from gkd_scale.segment.config import PredictConfig
from gkd_scale.segment.predict import predict

EXAMPLES = """\
  deepspeed launchers/predict.py runs/stage2 --images photos --out predictions --overlay
  torchrun --nproc-per-node 8 launchers/predict.py runs/stage2 --images s3://bucket/photos --out predictions
"""


def run(cfg: PredictConfig, runtime: Runtime, _launchers: Path) -> None:
    """Every rank predicts its share; rank 0 prints."""
    predict(cfg, runtime)


if __name__ == "__main__":
    start(
        PredictConfig,
        run,
        __file__,
        description="Predict the classes of any images with a stage-2 run, on all ranks.",
        examples=EXAMPLES,
    )
