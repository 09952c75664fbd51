"""Ray Tune: start or restore it, with its search algorithm and scheduler, and follow its trials."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import schedulers
from ray.tune.search.basic_variant import BasicVariantGenerator

from gkd_scale import console
from gkd_scale.cache.cluster import join
from gkd_scale.errors import RunError
from gkd_scale.search import trial
from gkd_scale.search.checks import SearchPlan, cores
from gkd_scale.search.config import SearchConfig
from gkd_scale.search.halving import Asha, HyperBand
from gkd_scale.search.live import Board
from gkd_scale.search.results import METRIC
from gkd_scale.search.space import Dimension

STATE = "ray"
"""Tune's folder, inside the folder of the search."""
OBJECTIVE = {"metric": METRIC, "mode": "max"}


@contextmanager
def ray_of(cfg: SearchConfig, plan: SearchPlan) -> Iterator[None]:
    """A Ray of this machine, or the cluster at ``--address``; it is left at the end."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the table names failures and causes
    warnings.filterwarnings("ignore", module="optuna")
    if cfg.cluster.address is None:
        ray.init(address="local", num_cpus=cores(cfg), include_dashboard=cfg.cluster.dashboard, **options)
    else:
        join(cfg.cluster.address, "--address", **options)
    try:
        _show_resources(cfg, plan)
        yield
    finally:
        if Board.current:
            Board.current.close()
        ray.shutdown()


def _show_resources(cfg: SearchConfig, plan: SearchPlan) -> None:
    total = {kind: ray.cluster_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    console.out.print(
        f"[bold]search[/] {console.escape(plan.space.path.name)}: {', '.join(plan.space.searched)}; "
        f"{nodes} node(s), {total['CPU']:g} CPU, {total['GPU']:g} GPU; {console.escape(str(cfg.out))}"
    )
    for kind, amount in (("CPU", plan.cpu), ("GPU", plan.gpu)):
        if amount * plan.trial.workers > total[kind]:
            console.err.print(
                f"[yellow]waiting for nodes[/]: a trial needs {amount * plan.trial.workers:g} {kind}"
            )


def run_trials(cfg: SearchConfig, plan: SearchPlan) -> None:
    """Run all trials to their end. After Ctrl-C, as after a kill, the search can go on."""
    rank = {name: amount for name, amount in (("CPU", plan.cpu), ("GPU", plan.gpu)) if amount}

    def stage1(params: dict[str, Any]) -> None:
        trial.train(params, plan)

    trainable = tune.with_resources(stage1, tune.PlacementGroupFactory([rank] * plan.trial.workers))
    state = cfg.out.resolve() / STATE
    if tune.Tuner.can_restore(str(state)):
        console.out.print(f"going on with {cfg.out}", markup=False)
        _restore(state, trainable).fit()
    else:
        _new(cfg, plan, trainable).fit()


def _new(cfg: SearchConfig, plan: SearchPlan, trainable: Any) -> Any:
    """A search that has no trial yet."""
    parameters, algorithms = _algorithms(cfg, plan)
    count = algorithms.pop("count")
    run_config = tune.RunConfig(
        name=STATE,
        storage_path=str(cfg.out.resolve()),
        failure_config=tune.FailureConfig(max_failures=cfg.trial.retries),
        callbacks=[Board(cfg.out.resolve(), cfg.trial.steps, count)],
        verbose=0,
    )
    return tune.Tuner(
        trainable,
        param_space=parameters,
        tune_config=tune.TuneConfig(**algorithms, max_concurrent_trials=cfg.cluster.max_concurrent),
        run_config=run_config,
    )


def _restore(state: Path, trainable: Any) -> Any:
    """The search that Tune stored; RunError if it cannot be read."""
    try:
        return tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True)
    except Exception as error:  # pickles of another version of Ray, a file cut short: whatever it is
        reason = " ".join(str(error).split())[:160]
        raise RunError(
            f"{state} cannot be read: {type(error).__name__}: {reason}",
            "use the version of Ray that wrote it, or give another --out",
        ) from None


def _algorithms(cfg: SearchConfig, plan: SearchPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tune's parameter space, and the arguments of its TuneConfig with the ``count`` of trials."""
    space = {
        key: domain(dimension, grid=cfg.choice.search == "grid")
        for key, dimension in plan.space.searched.items()
    }
    settings: dict[str, Any] = {**OBJECTIVE, "scheduler": _scheduler(cfg, space), "reuse_actors": False}
    if cfg.choice.search == "grid":
        count = math.prod(len(dimension.values) for dimension in plan.space.searched.values())
        return space, {**settings, "num_samples": 1, "count": count}
    start = [plan.default] if plan.default else None
    if cfg.choice.search == "tpe" and cfg.choice.scheduler != "pbt":
        from optuna.samplers import TPESampler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.ERROR)
        # Optuna's own 10 random trials would be most of a small search.
        sampler = TPESampler(n_startup_trials=max(4, min(10, cfg.choice.num_trials // 3)), seed=cfg.seed)
        settings["search_alg"] = OptunaSearch(**OBJECTIVE, sampler=sampler, points_to_evaluate=start)
    else:
        full_start = start if start and len(plan.default) == len(space) else None
        settings["search_alg"] = BasicVariantGenerator(random_state=cfg.seed, points_to_evaluate=full_start)
    return space, {**settings, "num_samples": cfg.choice.num_trials, "count": cfg.choice.num_trials}


def domain(dimension: Dimension, *, grid: bool = False) -> Any:
    """A dimension in Tune's terms; both ends of whole-number ranges are included."""
    if dimension.kind == "choice":
        values = list(dimension.values)
        return tune.grid_search(values) if grid else tune.choice(values)
    low, high = dimension.values
    return getattr(tune, dimension.kind)(low, high + 1 if dimension.kind.endswith("randint") else high)


def _scheduler(cfg: SearchConfig, space: dict[str, Any]) -> Any:
    """Trials end by themselves after ``cfg.trial.steps``; a scheduler only ends them earlier."""
    if cfg.choice.scheduler == "asha":
        return Asha(cfg.out.resolve(), cfg.trial.steps, cfg.least, cfg.choice.reduction)
    if cfg.choice.scheduler == "hyperband":
        return HyperBand(-(-cfg.trial.steps // cfg.trial.every), cfg.choice.reduction)
    if cfg.choice.scheduler == "pbt":
        return schedulers.PopulationBasedTraining(
            time_attr="step", perturbation_interval=cfg.trial.every, hyperparam_mutations=dict(space)
        )
    return schedulers.FIFOScheduler()
