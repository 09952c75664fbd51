"""Hyperparameter search with Ray Tune: ``python tuning/search.py``.

Read, check everything that can be checked, start Ray, let Tune run trials (:mod:`trial`) under a scheduler
and a search algorithm, follow them (:mod:`live`), sum up (:mod:`summary`), and with ``--final`` train the
best as a user would (:mod:`final`). The same command goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import space as spaces
from options import SearchConfig

from gkd_scale import config, console, files
from gkd_scale.errors import DamageError, RunError

HERE = Path(__file__).resolve().parent
EXAMPLES = """\
  python tuning/search.py
  python tuning/search.py --space qsd.yaml --cache caches/proxy --student vit_small_patch16_224 \\
      --train folder:city/train --val folder:city/val --num-trials 16 --steps 4000 --resources gpu=1,cpu=8
  python tuning/search.py --address auto --resources gpu=1,cpu=8 --workers-per-trial 4 --cache caches/proxy
"""
RECORD, COMPLETE, STATE = "search.json", "summary.json", "ray"
VOLATILE = (
    *("out", "resume", "final", "final_steps", "head", "head_steps", "test"),
    *("dashboard", "address", "cpus", "max_concurrent", "mirror", "mirror_gb"),
)
"""Options that may change when a search goes on."""
METRIC = {"metric": "miou", "mode": "max"}


def search(cfg: SearchConfig) -> None:
    """Run or go on with a search."""
    from checks import check

    plan = check(cfg)
    with files.claimed(cfg.out):
        settings = _settings(cfg, plan.space)
        if (cfg.out / COMPLETE).exists():
            console.out.print(f"{cfg.out} is already complete", markup=False)
        else:
            _tune(cfg, plan, settings)
        import summary

        summary.conclude(cfg, plan)
        if cfg.final:
            import final

            final.run(cfg, plan)


def _settings(cfg: SearchConfig, space: spaces.Space) -> dict[str, Any]:
    """What the search is; RunError where the folder holds another one, or something else."""
    from gkd_scale.cache.spec import SPEC
    from gkd_scale.engine.run import CONFIG, refuse_changed

    record = cfg.out / RECORD
    asked = {key: value for key, value in config.to_dict(cfg).items() if key not in VOLATILE}
    searched = {key: dimension.text() for key, dimension in space.searched.items()}
    now: dict[str, Any] = json.loads(json.dumps({**asked, "space": {**space.fixed, **searched}}))
    if record.exists():
        try:
            before = files.read_json(record)
        except DamageError as error:
            raise RunError(error.message, "give another --out: what was searched is not known") from None
        refuse_changed(cfg.out, before, now)
    elif other := next((name for name in (CONFIG, SPEC) if (cfg.out / name).exists()), None):
        raise RunError(f"{cfg.out} holds something else than a search ({other})", "give another --out")
    elif cfg.resume:
        raise RunError(
            f"{cfg.out} holds no search to go on with", "leave --resume out, or give another --out"
        )
    return now


# ------------------------------------------------------------------------------------------- Tune


def _tune(cfg: SearchConfig, plan: Any, settings: dict[str, Any]) -> None:
    """Run all trials to their end. Ctrl-C leaves everything as a kill would, to go on from."""
    _environment()
    import ray
    import trial
    from live import Board
    from ray import tune

    _start_ray(cfg, plan)
    files.write_json(cfg.out / RECORD, settings)
    rank = {name: amount for name, amount in (("CPU", plan.cpu), ("GPU", plan.gpu)) if amount}

    def stage1(drawn: dict[str, Any]) -> None:
        trial.train(drawn, plan)

    trainable = tune.with_resources(stage1, tune.PlacementGroupFactory([rank] * plan.workers))
    state = cfg.out.resolve() / STATE
    try:
        if tune.Tuner.can_restore(str(state)):
            console.out.print(f"going on with {cfg.out}", markup=False)
            tuner = _restored(state, trainable)
        else:
            parameters, algorithms = _algorithms(cfg, plan)
            count = algorithms.pop("count")
            run_config = tune.RunConfig(
                name=STATE,
                storage_path=str(cfg.out.resolve()),
                failure_config=tune.FailureConfig(max_failures=cfg.retries),
                callbacks=[Board(cfg.out.resolve(), cfg.steps, count)],
                verbose=0,
            )
            tuner = tune.Tuner(
                trainable,
                param_space=parameters,
                tune_config=tune.TuneConfig(**algorithms, max_concurrent_trials=cfg.max_concurrent),
                run_config=run_config,
            )
        tuner.fit()
    finally:
        if Board.current:
            Board.current.close()
        ray.shutdown()


def _restored(state: Path, trainable: Any) -> Any:
    """The search that Tune has kept; RunError where that cannot be read."""
    from ray import tune

    try:
        return tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True)
    except Exception as error:  # pickles of another version of Ray, a file cut short: whatever it is
        reason = " ".join(str(error).split())[:160]
        raise RunError(
            f"{state} cannot be read: {type(error).__name__}: {reason}",
            "use the version of Ray that wrote it, or give another --out",
        ) from None


def _environment() -> None:
    """Ray without telemetry or console output, with frequent snapshots and trials of usual priority."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 otherwise: whatever else runs on the machine comes before trials
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _start_ray(cfg: SearchConfig, plan: Any) -> None:
    """A Ray of this machine, or the cluster at ``--address``. Workers import what this process imports."""
    import ray

    from gkd_scale.cache.cluster import join

    path = os.pathsep.join(filter(None, (str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH"))))
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if cfg.address is None:
        from checks import cores

        options |= {"address": "local", "num_cpus": cores(cfg), "include_dashboard": cfg.dashboard}
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the table names failures and causes
    warnings.filterwarnings("ignore", module="optuna")
    if cfg.address is None:
        ray.init(**options)
    else:
        join(cfg.address, "--address", **options)
    there = {kind: ray.cluster_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    console.out.print(
        f"[bold]search[/] {console.escape(plan.space.path.name)}: {', '.join(plan.space.searched)}; "
        f"{nodes} node(s), {there['CPU']:g} CPU, {there['GPU']:g} GPU; {console.escape(str(cfg.out))}"
    )
    for kind, each in (("CPU", plan.cpu), ("GPU", plan.gpu)):
        if each * plan.workers > there[kind]:
            console.err.print(f"[yellow]waiting for nodes[/]: a trial needs {each * plan.workers:g} {kind}")


def _algorithms(cfg: SearchConfig, plan: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tune's parameter space, and the arguments of its TuneConfig with the ``count`` of trials."""
    space = {key: domain(each, grid=cfg.search == "grid") for key, each in plan.space.searched.items()}
    settings: dict[str, Any] = {**METRIC, "scheduler": _scheduler(cfg, space), "reuse_actors": False}
    if cfg.search == "grid":
        count = 1
        for each in plan.space.searched.values():
            count *= len(each.values)
        return space, {**settings, "num_samples": 1, "count": count}
    start = [plan.default] if plan.default else None
    if cfg.search == "tpe" and cfg.scheduler != "pbt":
        from optuna.samplers import TPESampler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.ERROR)
        # Optuna's own 10 random trials would be most of a small search.
        sampler = TPESampler(n_startup_trials=max(4, min(10, cfg.num_trials // 3)), seed=cfg.seed)
        settings["search_alg"] = OptunaSearch(**METRIC, sampler=sampler, points_to_evaluate=start)
    else:
        from ray.tune.search.basic_variant import BasicVariantGenerator

        whole = start if start and len(plan.default) == len(space) else None
        settings["search_alg"] = BasicVariantGenerator(random_state=cfg.seed, points_to_evaluate=whole)
    return space, {**settings, "num_samples": cfg.num_trials, "count": cfg.num_trials}


def domain(dimension: spaces.Dimension, *, grid: bool = False) -> Any:
    """A dimension as Tune says it; both ends of whole-number ranges are included."""
    from ray import tune

    if dimension.kind == "choice":
        values = list(dimension.values)
        return tune.grid_search(values) if grid else tune.choice(values)
    low, high = dimension.values
    return getattr(tune, dimension.kind)(low, high + 1 if dimension.kind.endswith("randint") else high)


def _scheduler(cfg: SearchConfig, space: dict[str, Any]) -> Any:
    """Trials end by themselves after ``cfg.steps``; a scheduler only ends them earlier."""
    from halving import Asha, HyperBand
    from ray.tune import schedulers

    if cfg.scheduler == "asha":
        return Asha(cfg.out.resolve(), cfg.steps, cfg.least, cfg.reduction)
    if cfg.scheduler == "hyperband":
        return HyperBand(-(-cfg.steps // cfg.every), cfg.reduction)
    if cfg.scheduler == "pbt":
        return schedulers.PopulationBasedTraining(
            time_attr="step", perturbation_interval=cfg.every, hyperparam_mutations=dict(space)
        )
    return schedulers.FIFOScheduler()


def main(argv: list[str]) -> int:
    """The command; its exit status (0 done, 1 our fault or damage, 2 the user's mistake)."""
    return console.run(
        lambda: search(
            config.parse(
                SearchConfig,
                argv,
                prog="search.py",
                description="Search for the stage-1 options that make the best student.",
                examples=EXAMPLES,
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
