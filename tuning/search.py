"""Hyperparameter search with Ray Tune: ``python tuning/search.py``. The same command resumes it."""

import sys
from collections.abc import Sequence

from gkd_scale import config, console
from gkd_scale.memory import collector_paused
from gkd_scale.search.config import SearchConfig

EXAMPLES = """\
  python tuning/search.py
  python tuning/search.py --space qsd.yaml --cache caches/proxy --student vit_small_patch16_224 \\
      --train folder:city/train --val folder:city/val --num-trials 16 --steps 4000 --resources gpu=1,cpu=8
  python tuning/search.py --address auto --resources gpu=1,cpu=8 --workers-per-trial 4 --cache caches/proxy
"""


def run(argv: Sequence[str]) -> None:
    """Parse the options, then search."""
    cfg = config.parse(
        SearchConfig,
        argv,
        prog="search.py",
        description="Search for the stage-1 options that make the best student.",
        examples=EXAMPLES,
    )
    with collector_paused(freeze=True):
        from gkd_scale.search.search import search  # torch and Ray: not for --help or a mistyped flag

    search(cfg)


def main(argv: Sequence[str]) -> int:
    """The command; its exit status (0 done, 1 our fault or damage, 2 the user's mistake)."""
    return console.run(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
