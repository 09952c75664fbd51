"""Stage 1, for a launcher: ``deepspeed launchers/stage1.py --ds-config zero2.json``."""

import sys
from functools import partial
from pathlib import Path

from gkd_scale.demo import defaults
from gkd_scale.distill import stage1
from gkd_scale.distill.config import Stage1Config
from gkd_scale.engine.launch import main

if __name__ == "__main__":
    sys.exit(
        main(
            Stage1Config,
            partial(stage1.train, default_cache=defaults.proxy_cache),
            argv=sys.argv[1:],
            bundled=Path(__file__).parent,
            prog="stage1.py",
            description="Distil a student from cached teacher features, without a label.",
            examples=stage1.EXAMPLES,
        )
    )
