"""The end of a search: the best configuration as YAML that stage 1 takes, importances, and one HTML page.

``best.yaml`` goes to ``deepspeed launchers/stage1.py --config``; ``summary.json`` holds the numbers and is
written last; ``summary.html`` is a single file that needs no network.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from gkd_scale import commands, config, console, files
from gkd_scale.errors import RunError
from gkd_scale.search import plots, results
from gkd_scale.search.checks import LAUNCHERS, SearchPlan
from gkd_scale.search.config import SearchConfig
from gkd_scale.search.results import Trial
from gkd_scale.search.table import table

BEST = "best.yaml"
PAGE = "summary.html"


def conclude(cfg: SearchConfig, plan: SearchPlan) -> None:
    """Write and print the summary; RunError if no trial has a result."""
    trials = results.Results(cfg.out).trials()
    best = results.best(trials, cfg.trial.steps)
    if best is None:
        causes = {trial.cause for trial in trials if trial.cause}
        raise RunError(
            f"no trial of {cfg.out} has a result: {'; '.join(sorted(causes))}",
            "mend the cause, then use another --out",
        )
    importances = importance(trials, plan)
    files.write_text(cfg.out / BEST, best_yaml(best, plan, cfg))
    files.write_text(cfg.out / PAGE, plots.page(trials, best, importances, plan.space, cfg.trial.steps))
    numbers = _numbers(trials, best, importances, cfg)
    files.write_json(cfg.out / "summary.json", numbers)
    width = None if console.out.is_terminal else 160
    console.out.print(table(trials, cfg.trial.steps, best), width=width)
    console.out.print(
        f"{numbers['share_saved']:.0%} of the trial-steps were saved by stopping early; "
        + "importance: "
        + ", ".join(f"{key} {value:.2f}" for key, value in importances.items())
    )
    paths = f"{cfg.out / BEST}, {cfg.out / PAGE}, {cfg.out / results.FILE}"
    console.out.print(f"[green]done[/]: {console.escape(paths)}")
    console.paste("next: ", *_command(cfg))


def _command(cfg: SearchConfig) -> list[object]:
    """Stage 1 with the best configuration."""
    return ["deepspeed", commands.script(LAUNCHERS, "stage1.py"), "--config", cfg.out / BEST]


def best_yaml(best: Trial, plan: SearchPlan, cfg: SearchConfig) -> str:
    """The best trial's configuration, readable by stage 1's ``--config``."""
    stage1 = plan.stage1(best.config, cfg.out / "best")
    stage1.run.save_every = max(1, min(500, stage1.run.steps or 500))
    header = (
        f"# Trial {best.number} ({best.name}): mIoU {best.score:.2f} after {best.steps} steps, "
        f"{cfg.trial.probe} probe on {', '.join(plan.val)}.\n"
        f"# {commands.shell(*_command(cfg))}\n"
    )
    return header + config.to_yaml(stage1)


def _numbers(
    trials: list[Trial], best: Trial, importances: dict[str, float], cfg: SearchConfig
) -> dict[str, Any]:
    valid = [trial for trial in trials if trial.status != results.FAILED]
    steps = sum(trial.steps for trial in valid)
    return {
        "best": {"trial": best.name, "miou": best.score, "steps": best.steps, "config": best.config},
        "trials": {
            kind: sum(trial.status == kind for trial in trials)
            for kind in (results.DONE, results.STOPPED, results.FAILED)
        },
        "trial_steps": steps,
        "share_saved": 1 - steps / (cfg.trial.steps * len(valid)),
        "importance": importances,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def importance(trials: list[Trial], plan: SearchPlan) -> dict[str, float]:
    """The share of each searched option in what separates good trials from others, by PED-ANOVA.

    Trials are compared at the last step that all of them reached: a later mIoU of those that went on would
    credit the scheduler's decisions to the options. Empty for fewer than 4 trials.
    """
    curves = [trial for trial in trials if trial.curve]
    if len(curves) < 4:
        return {}
    common = min(trial.steps for trial in curves)
    scores = [(t.config, next((v for step, v in t.curve if step == common), None)) for t in curves]
    return _ped_anova([(params, value) for params, value in scores if value is not None], plan)


def _ped_anova(points: list[tuple[dict[str, Any], float]], plan: SearchPlan) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="maximize")
        distributions = {key: _distribution(dimension) for key, dimension in plan.space.searched.items()}
        for params, value in points:
            options = {key: params[key] for key in distributions if key in params}
            study.add_trial(
                optuna.trial.create_trial(
                    params=options, distributions={key: distributions[key] for key in options}, value=value
                )
            )
        try:
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # too few trials that differ
            return {}


def _distribution(dimension: Any) -> Any:
    from optuna import distributions as d

    if dimension.kind == "choice":
        return d.CategoricalDistribution(dimension.values)
    low, high = dimension.values
    kind = d.IntDistribution if dimension.kind.endswith("randint") else d.FloatDistribution
    return kind(low, high, log=dimension.kind.startswith("log"))
