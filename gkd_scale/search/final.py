"""``--final``: the best configuration trained as a user would, then a head on it, then unseen domains.

Three commands, each a process of its own with a log in ``final/logs``. A complete one is not run again.
"""

from __future__ import annotations

from pathlib import Path

from gkd_scale import console
from gkd_scale.demo import defaults
from gkd_scale.engine.run import RECORD
from gkd_scale.errors import GkdError
from gkd_scale.scenes import UNSEEN
from gkd_scale.search.checks import LAUNCHERS, SearchPlan
from gkd_scale.search.config import SearchConfig
from gkd_scale.subprocesses import Step, data_flags, repeat, run_step

TEST = {name: f"embedded:{defaults.DATA / name}" for name in UNSEEN}
"""The test domains if the embedded data is the source and no --test is given."""


def run(cfg: SearchConfig, plan: SearchPlan) -> None:
    """Stage 1 with the full budget, stage 2, and evaluate; GkdError if one fails."""
    out = cfg.out / "final"
    test = plan.test or (TEST if not cfg.domains.train else {})
    steps = commands(cfg, plan, out, test)
    for number, (step, marker) in enumerate(steps, 1):
        if marker.exists():
            console.out.print(f"[green]done before[/] {step.title}: {console.escape(str(marker))}")
            continue
        log = out / f"logs/{number:02d}.log"
        run_step(step, f"{number}/{len(steps)}", log)
        if not marker.exists():  # the launcher's exit status alone proves nothing
            raise GkdError(f"'{step.title}' has not written {marker}", f"see {log}")
    if not test:
        console.out.print("no --test NAME=ADAPTER:PATH is given: nothing was evaluated")


def commands(cfg: SearchConfig, plan: SearchPlan, out: Path, test: dict[str, str]) -> list[tuple[Step, Path]]:
    """The steps, each with the file that says that it is complete."""
    launch = ["deepspeed", "--num_gpus", str(plan.trial.workers)]
    stage1, stage2 = out / "stage1", out / "stage2"
    first = [*launch, str(LAUNCHERS / "stage1.py"), "--config", str(cfg.out / "best.yaml")]
    second = [*launch, str(LAUNCHERS / "stage2.py"), "--ds-config", plan.base["ds_config"]]
    second += [*repeat("--train", plan.train.values()), *repeat("--val", plan.val.values())]
    second += ["--backbone", str(stage1), "--image-size", "x".join(map(str, plan.image_size))]
    second += ["--head", cfg.final.head, "--steps", str(cfg.final.head_steps), "--out", str(stage2)]
    first += ["--steps", str(cfg.final.steps or cfg.trial.steps), "--out", str(stage1)]
    steps = [
        (Step("stage 1 with the best settings", first), stage1 / RECORD),
        (Step("stage 2", second), stage2 / RECORD),
    ]
    if test:
        command = ["gkd-scale", "evaluate", str(stage2), *data_flags(test)]
        steps.append((Step("evaluate", command), stage2 / "evaluation.json"))
    return steps
