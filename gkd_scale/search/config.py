"""The options of the search. Light: nothing here imports torch or Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd_scale import ranges
from gkd_scale.cache.config import MirrorConfig
from gkd_scale.config import inline, option
from gkd_scale.errors import ConfigError, nearest
from gkd_scale.ranges import Range
from gkd_scale.segment.config import DEFAULT_TRAIN, DEFAULT_VAL
from gkd_scale.segment.heads.registry import HEADS
from gkd_scale.timm_arguments import TIMM_ARGUMENTS


@dataclass
class TrialStudentConfig:
    """student: what every trial trains"""

    name: str = option("demo_student", "timm name of the student", metavar="NAME")
    args: dict[str, Any] = option({}, "arguments of timm.create_model", keys=TIMM_ARGUMENTS)
    weights: str | None = option(None, "weights file, stage-1 run, or 'pretrained'", metavar="FILE|RUN")


@dataclass
class DomainsConfig:
    """data: labelled images that students are measured on"""

    train: list[str] = option(
        [],
        f"labelled source data that the probe is fitted on (default {DEFAULT_TRAIN})",
        metavar="[NAME=]ADAPTER:PATH",
    )
    val: list[str] = option(
        [], f"held-in domain to select on, repeatable (default {DEFAULT_VAL})", metavar="[NAME=]ADAPTER:PATH"
    )
    test: list[str] = option(
        [],
        "domain that --final evaluates on, never selected on; repeatable",
        metavar="NAME=ADAPTER:PATH",
        volatile=True,
    )

    def __post_init__(self) -> None:
        if bool(self.train) != bool(self.val):
            missing, present = ("--val", "--train") if self.train else ("--train", "--val")
            raise ConfigError(
                f"{present} is given without {missing}", "give both, or neither for the embedded data"
            )


@dataclass
class TrialConfig:
    """trial: the training of one student, and how it is measured"""

    steps: int = option(160, "optimizer steps of a whole trial", within=ranges.COUNT)
    report_every: int | None = option(
        None, "steps between probes (default: a quarter of --steps)", metavar="N", within=ranges.COUNT
    )
    probe: str = option("linear", "probe on frozen patch tokens", choices=("linear", "knn"))
    probe_images: int = option(
        100, "most images that the probe is fitted on, and scored on, a domain", within=ranges.COUNT
    )
    workers: int = option(1, "DeepSpeed ranks of a trial", within=ranges.SIZE)
    resources: str = option(
        "", "of a rank, e.g. gpu=1,cpu=8 or gpu=0.25,cpu=2 (default: cpu=1, and gpu=1 where there are GPUs)"
    )
    retries: int = option(
        3, "how often a trial goes on after its process or node was lost", within=ranges.NUMBER
    )

    def __post_init__(self) -> None:
        if self.every > self.steps:
            raise ConfigError(
                f"--report-every {self.every} is more than --steps {self.steps}",
                "report at least once a trial",
            )
        self.resource_map()

    @property
    def every(self) -> int:
        """Steps between reports."""
        return self.report_every or max(1, self.steps // 4)

    def resource_map(self) -> dict[str, float]:
        """``--resources`` as ``{"cpu": 1.0, ...}``; ConfigError for a malformed one."""
        amounts: dict[str, float] = {}
        for part in filter(None, (item.strip() for item in self.resources.split(","))):
            name, _, text = part.partition("=")
            if name not in ("cpu", "gpu"):
                raise ConfigError(
                    f"--resources names '{name}'", nearest(name, ("cpu", "gpu")) or "write gpu=1,cpu=8"
                )
            if name in amounts:
                raise ConfigError(f"--resources names '{name}' twice", "write gpu=1,cpu=8")
            try:
                amounts[name] = float(text)
            except ValueError:
                raise ConfigError(f"--resources '{part}' is no number", "write gpu=1,cpu=8") from None
            amount = amounts[name]
            if not (amount == 0 or 1e-4 <= amount < float("inf")):
                raise ConfigError(
                    f"--resources '{part}' is no amount", "write gpu=1,cpu=8, or a share of at least 0.0001"
                )
        return amounts


@dataclass
class ChoiceConfig:
    """choice: which settings are tried, and which trials end early"""

    num_trials: int = option(8, "configurations to try (a grid has as many as it has)", within=ranges.SIZE)
    search: str = option("tpe", "who proposes", choices=("tpe", "random", "grid"))
    scheduler: str = option("asha", "who stops early", choices=("asha", "hyperband", "pbt", "none"))
    grace: int | None = option(
        None,
        "steps that ASHA lets every trial train (default: half of --steps)",
        metavar="N",
        within=ranges.COUNT,
    )
    reduction: int = option(
        3, "ASHA and HyperBand keep one in so many", within=Range(ge=2, le=1000, hint="give at least 2")
    )

    def __post_init__(self) -> None:
        if self.search == "grid" and self.scheduler == "pbt":
            raise ConfigError("--scheduler pbt draws its own settings", "leave --search grid out")


@dataclass
class ClusterConfig:
    """cluster: where trials run"""

    address: str | None = option(
        None, "Ray cluster: auto or ray://HOST:PORT (default: this machine)", volatile=True
    )
    cpus: int | None = option(
        None,
        "CPU cores that a search on this machine may use",
        metavar="N",
        within=ranges.COUNT,
        volatile=True,
    )
    max_concurrent: int | None = option(
        None, "trials at a time (default: as many as fit)", metavar="N", within=ranges.COUNT, volatile=True
    )
    dashboard: bool = option(False, "Ray's dashboard", volatile=True)


@dataclass
class FinalConfig:
    """final: what follows the search"""

    run: bool = option(False, "retrain the best, then stage 2 and evaluate", volatile=True)
    steps: int | None = option(
        None, "steps of that retraining (default: --steps)", metavar="N", within=ranges.COUNT, volatile=True
    )
    head_steps: int = option(300, "steps of stage 2 with --final", within=ranges.COUNT, volatile=True)
    head: str = option(next(iter(HEADS)), "segmentation head with --final", choices=HEADS, volatile=True)


@dataclass
class SearchConfig:
    """Search for the stage-1 options that make the best student."""

    space: str = option("demo.yaml", "search space: a path, or the name of a bundled one", metavar="FILE")
    cache: list[str] = option(
        [], "teacher cache, folder or URL, repeatable (default: the embedded data)", metavar="CACHE"
    )
    ds_config: str = option("zero2.json", "DeepSpeed JSON: a path, or the name of a bundled one")
    out: Path = option(
        Path("runs/tune"), "folder of the search; the same command again goes on", volatile=True
    )
    resume: bool = option(
        False, "refuse to start a new search where there is none to go on with", volatile=True
    )
    seed: int = option(0, "decides what is proposed, and every trial's training", within=ranges.SEED)
    student: TrialStudentConfig = inline(
        TrialStudentConfig, name="student", args="student_args", weights="student_weights"
    )
    domains: DomainsConfig = inline(DomainsConfig)
    trial: TrialConfig = inline(TrialConfig, workers="workers_per_trial")
    choice: ChoiceConfig = inline(ChoiceConfig)
    cluster: ClusterConfig = inline(ClusterConfig)
    mirror: MirrorConfig = inline(MirrorConfig, folder="mirror", gb="mirror_gb")
    final: FinalConfig = inline(FinalConfig, run="final", steps="final_steps")

    @property
    def least(self) -> int:
        """Steps that no scheduler takes from a trial: a whole number of reports."""
        trial, grace = self.trial, self.choice.grace
        return max(trial.every, (grace or trial.steps // 2) // trial.every * trial.every)
