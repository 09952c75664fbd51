"""The options of ``gkd-scale doctor``. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gkd_scale import ranges
from gkd_scale.config import option
from gkd_scale.ranges import Range

GROUPS = ("versions", "devices", "deepspeed", "system", "storage", "network", "nodes")
RATE = Range(gt=0, le=1e9, hint="images a second, for example 800")
SECONDS = Range(gt=0, le=600, hint="seconds, for example 3")
PORT = Range(ge=1, le=65535, hint="a TCP port, for example 29500")


@dataclass(kw_only=True)
class DoctorConfig:
    """Check this machine, and the nodes of a hostfile: each line is ok, warn or fail, with what to do."""

    cache: str | Path | None = option(None, "a teacher cache: measure how fast it is read", metavar="CACHE")
    run: Path | None = option(
        None,
        "a stage-1 run like the planned one: its metrics.jsonl says how many images a second are needed",
        metavar="RUN",
    )
    needs: float | None = option(
        None, "images a second that the run needs, all ranks together, instead of --run", within=RATE
    )
    hostfile: Path | None = option(
        None, "hostfile of DeepSpeed ('host slots=N' lines): check its nodes over ssh", metavar="FILE"
    )
    port: int = option(29500, "port of rank 0", within=PORT)
    out: Path = option(Path(), "folder that runs will be written to: its disk is measured", metavar="DIR")
    seconds: float = option(3.0, "how long reading the cache is measured", within=SECONDS)
    workers: int = option(2, "threads that read and decode, as --workers of stage 1", within=ranges.THREADS)
    compile: bool = option(False, "compile one of DeepSpeed's ops (CPU Adam) and say how long that takes")
    only: list[str] = option([], "check this group alone, repeatable", choices=GROUPS)
    json: bool = option(False, "print JSON")
