"""``gkd-scale demo``: the whole method on the embedded scenes, as the commands a user would type.

Each step is a real command in its own process: it is printed, and its output goes to a log. A demo that is
started again goes on where it stopped. At the end it prints the mIoU of teacher, student without distillation
and student with GKD, on the source domain and on domains that none of them was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from gkd_scale import console, files
from gkd_scale.demo.config import DemoConfig
from gkd_scale.scenes import UNSEEN
from gkd_scale.segment import export
from gkd_scale.subprocesses import Step, data_flags, launch, require_launchers, run_all

SIZE = "96x128"


def demo(cfg: DemoConfig) -> int:
    """Run every step, then print the table. Raises GkdError if a step fails."""
    require_launchers(cfg.launchers)
    start = time.monotonic()
    with files.claim(cfg.out):
        run_all(plan(cfg), cfg.out / "logs")
        results = {row: _result(cfg, name) for row, name in ROWS.items()}
        files.write_json(cfg.out / "results.json", results)
    console.out.print(table(results))
    minutes = (time.monotonic() - start) / 60
    console.out.print(
        f"[green]done[/] in {minutes:.1f} minutes; everything is in {console.escape(str(cfg.out))}:"
    )
    console.out.print(
        "  data/ the scenes, caches/ the teacher's features, gkd/backbone.safetensors the student,\n"
        "  gkd-head/ the segmentation model, results.json every number, logs/ what each command printed,\n"
        "  report.html all of it as a page: open it in a browser"
    )
    return 0


ROWS = {"teacher": "teacher", "student without distillation": "scratch", "student with GKD": "gkd"}
"""Rows of the table, and the prefixes of their folders."""


def _result(cfg: DemoConfig, name: str) -> dict[str, dict[str, float]]:
    """mIoU in validation on the source domain, which chose the step, and on the unseen domains."""
    run = cfg.out / f"{name}-head"
    return {"source": {"miou": export.load_card(run).miou}, **files.read_json(run / "evaluation.json")}


def plan(cfg: DemoConfig) -> list[Step]:
    """The commands of the demo, in order."""
    data, caches, out = cfg.out / "data", cfg.out / "caches", cfg.out
    seed = ["--seed", str(cfg.seed)]
    steps = [Step("write the embedded scenes", ["gkd-scale", "make-data", str(data)])]
    for name, images in (("proxy", data / "proxy"), ("source", data / "source/train/images")):
        command = ["gkd-scale", "cache-teacher", "--images", str(images), "--teacher", "demo_teacher"]
        command += ["--image-size", SIZE, "--views", "4", *seed, "--out", str(caches / name)]
        steps.append(Step(f"run the teacher once over the {name} images", command))
    stage1 = [*launch(cfg.launchers / "stage1.py", cfg.ds_config), "--student", "demo_student", *seed]
    stage1 += ["--lr", str(cfg.lr), "--global-batch", str(cfg.batch)]

    def distil(cache: str, folder: Path, count: int) -> list[str]:
        return [*stage1, "--cache", str(caches / cache), "--out", str(folder), "--steps", str(count)]

    proxy = distil("proxy", out / "gkd-proxy", cfg.proxy_steps)
    source = distil("source", out / "gkd", cfg.source_steps)
    steps += [
        Step("stage 1, task-agnostic: distil on proxy images", proxy),
        Step(
            "stage 1, domain-agnostic: distil on source images",
            [*source, "--student-weights", str(out / "gkd-proxy")],
        ),
    ]
    stage2 = launch(cfg.launchers / "stage2.py", cfg.ds_config)
    stage2 += ["--train", f"embedded:{data / 'source/train'}", "--val", f"embedded:{data / 'source/val'}"]
    stage2 += ["--head", "linear", "--image-size", SIZE]
    for name, title, flags in _heads(cfg):
        steps.append(Step(f"stage 2: {title}", [*stage2, "--out", str(out / f"{name}-head"), *seed, *flags]))
    for row, name in ROWS.items():
        command = ["gkd-scale", "evaluate", str(out / f"{name}-head"), *_domains(cfg, UNSEEN)]
        steps.append(Step(f"evaluate: {row}", command))
    report = ["gkd-scale", "report", *(str(out / f"{name}-head") for name in ROWS.values())]
    report += [*_domains(cfg, ("unseen_night", "unseen_fog")), "--images", "24", "--scenes", "2"]
    return [*steps, Step("show all of it on a page", [*report, "--out", str(out / "report.html")])]


def _heads(cfg: DemoConfig) -> list[tuple[str, str, list[str]]]:
    """Stage-2 runs. The student without distillation is trained end to end, for as many steps in all."""
    head = ["--steps", str(cfg.head_steps)]
    all_steps = ["--steps", str(cfg.proxy_steps + cfg.source_steps + cfg.head_steps)]
    return [
        ("gkd", "a head on the distilled student, frozen", ["--backbone", str(cfg.out / "gkd"), *head]),
        (
            "teacher",
            "a head on the teacher, frozen",
            ["--backbone", "pretrained", "--student", "demo_teacher", *head],
        ),
        (
            "scratch",
            "the student without distillation, trained end to end",
            ["--adapt", "full", "--student", "demo_student", *all_steps],
        ),
    ]


def _domains(cfg: DemoConfig, names: Sequence[str]) -> list[str]:
    return data_flags({name: f"embedded:{cfg.out / 'data' / name}" for name in names})


def table(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """mIoU in percent; rows are models, columns domains, and the mean over the unseen ones.

    It fits 80 columns: headers break at the underscores of the domains' names.
    """
    grid = Table(title="mIoU in %: the source domain, then unseen domains and their mean", padding=(0, 0))
    grid.add_column("model", no_wrap=True)
    domains = list(next(iter(results.values())))
    for domain in domains:
        grid.add_column(domain.replace("_", "\n"), justify="right", no_wrap=True)
    grid.add_column("unseen\nmean", justify="right", style="bold", no_wrap=True)
    for row, result in results.items():
        values = [result[domain]["miou"] for domain in domains]
        unseen = [result[domain]["miou"] for domain in domains if domain.startswith("unseen")]
        grid.add_row(row, *(f"{value:.1f}" for value in values), f"{sum(unseen) / len(unseen):.1f}")
    return grid
