"""``--final``: the best configuration trained as a user would, then a head on it, then unseen domains.

Three commands, each shown, each in a process of its own; a step that is complete is not run again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from checks import LAUNCHERS, Plan
from options import SearchConfig

from gkd_scale import console
from gkd_scale.demo import defaults
from gkd_scale.engine.run import RECORD
from gkd_scale.engine.runtime import free_port
from gkd_scale.errors import GkdError
from gkd_scale.segment.datasets.scenes import UNSEEN

TEST = {name: f"embedded:{defaults.DATA / name}" for name in UNSEEN}
"""What is evaluated on where the embedded data is the source and no --test is given."""


def run(cfg: SearchConfig, plan: Plan) -> None:
    """Stage 1 with the full budget, stage 2, and evaluate; GkdError where one fails."""
    out = cfg.out / "final"
    test = plan.test or (TEST if not cfg.train else {})
    for title, command, marker in commands(cfg, plan, out, test):
        if marker.exists():
            console.out.print(f"[green]done before[/] {title}: {console.escape(str(marker))}")
            continue
        console.out.print(f"[bold]{title}[/]")
        console.paste("$ ", *command)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        status = subprocess.run(_with_port(command), env=environment, check=False).returncode
        if status or not marker.exists():  # the launcher's exit status alone proves nothing
            raise GkdError(f"{title} failed with exit code {status}", "the same command goes on from here")
    if not test:
        console.out.print("no --test NAME=ADAPTER:PATH is given: nothing was evaluated")


def commands(
    cfg: SearchConfig, plan: Plan, out: Path, test: dict[str, str]
) -> list[tuple[str, list[str], Path]]:
    """(title, command, the file that says it is complete) of each step."""
    launch = ["deepspeed", "--num_gpus", str(plan.workers)]
    stage1, stage2 = out / "stage1", out / "stage2"
    first = [*launch, str(LAUNCHERS / "stage1.py"), "--config", str(cfg.out / "best.yaml")]
    second = [*launch, str(LAUNCHERS / "stage2.py"), "--ds-config", plan.base["ds_config"]]
    for flag, refs in (("--train", plan.train), ("--val", plan.val)):
        for ref in refs.values():
            second += [flag, ref]
    second += ["--backbone", str(stage1), "--image-size", "x".join(map(str, plan.image_size))]
    second += ["--head", cfg.head, "--steps", str(cfg.head_steps), "--out", str(stage2)]
    steps = [
        (
            "stage 1 with the best settings",
            [*first, "--steps", str(cfg.final_steps or cfg.steps), "--out", str(stage1)],
            stage1 / RECORD,
        ),
        ("stage 2", second, stage2 / RECORD),
    ]
    if test:
        domains = [part for name, ref in test.items() for part in ("--data", f"{name}={ref}")]
        evaluate = ["gkd-scale", "evaluate", str(stage2), *domains]
        steps.append(("evaluate", evaluate, stage2 / "evaluation.json"))
    return steps


def _with_port(command: list[str]) -> list[str]:
    program = str(Path(sys.executable).parent / command[0])
    port = ["--master_port", str(free_port())] if command[0] == "deepspeed" else []
    return [program, *port, *command[1:]]
