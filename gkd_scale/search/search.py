"""A search from its options to its summary. The same search in the same folder goes on where it stopped."""

from __future__ import annotations

import json
import os
from typing import Any

from gkd_scale import config, console, files
from gkd_scale.cache.spec import SPEC
from gkd_scale.engine.run import CONFIG, refuse_changed
from gkd_scale.errors import DamageError, RunError
from gkd_scale.search import final, summary
from gkd_scale.search.checks import check
from gkd_scale.search.config import SearchConfig
from gkd_scale.search.space import Space

RECORD, COMPLETE = "search.json", "summary.json"


def search(cfg: SearchConfig) -> None:
    """Check the options, run all trials, write the summary and, with ``--final``, train the best.

    Raises ConfigError, CacheError, DataError, ModelError or RunError.
    """
    plan = check(cfg)
    with files.claim(cfg.out):
        settings = _settings(cfg, plan.space)
        if (cfg.out / COMPLETE).exists():
            console.out.print(f"{cfg.out} is already complete", markup=False)
        else:
            _set_environment()
            from gkd_scale.search import tuner  # Ray reads its environment when it is imported

            with tuner.ray_of(cfg, plan):
                files.write_json(cfg.out / RECORD, settings)
                tuner.run_trials(cfg, plan)
        summary.conclude(cfg, plan)
        if cfg.final.run:
            final.run(cfg, plan)


def _settings(cfg: SearchConfig, space: Space) -> dict[str, Any]:
    """What the search is, as JSON; RunError if the folder holds another search, or something else."""
    record = cfg.out / RECORD
    dimensions = {key: dimension.text() for key, dimension in space.searched.items()}
    now: dict[str, Any] = json.loads(
        json.dumps({**config.to_dict(cfg, volatile=False), "space": {**space.fixed, **dimensions}})
    )
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


def _set_environment() -> None:
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
