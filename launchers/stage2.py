"""Stage 2, for a launcher: ``deepspeed launchers/stage2.py --ds-config zero2.json``."""

import sys
from functools import partial
from pathlib import Path

from gkd_scale.demo import defaults
from gkd_scale.engine.launch import main
from gkd_scale.segment import stage2
from gkd_scale.segment.config import Stage2Config

if __name__ == "__main__":
    sys.exit(
        main(
            Stage2Config,
            partial(stage2.run, default_data=defaults.data),
            argv=sys.argv[1:],
            bundled=Path(__file__).parent,
            prog="stage2.py",
            description="Train a segmentation head on a frozen backbone, from source-domain labels.",
            examples=stage2.EXAMPLES,
        )
    )
