"""MLflow: a run in the tracking store of MLflow's settings (``MLFLOW_TRACKING_URI`` and others).

The default store is ``mlflow.db`` in the working directory. The experiment is
``MLFLOW_EXPERIMENT_NAME`` or ``gkd-scale``; the config becomes parameters.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gkd_scale.engine.loggers import Logger, LogRow, RunFacts, Status, flat

PACKAGE = "mlflow"
EXPERIMENT = "gkd-scale"
METRICS_A_CALL = 900
"""MLflow takes at most 1000."""
PARAMETERS_A_CALL = 100
LONGEST = 500
"""Most characters of a parameter's value."""
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def require() -> None:
    """Import the package. If the store does not answer, the user gets a remark and training goes on."""
    import mlflow  # noqa: F401


def start(run: RunFacts, start: int, say: Callable[[str], None]) -> Logger:  # noqa: ARG001
    """The run whose id is stored in ``run.out`` if the store has it, else a new one."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # our own retries come on top
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports each table of a new store
    client = mlflow.MlflowClient()
    previous = run.memory("mlflow").get("run")
    exists = previous is not None and _exists(client, previous)
    identity = str(previous) if exists else _create(client, run)
    if exists:
        client.update_run(identity, status="RUNNING")
    say(f"mlflow: run {identity} in {mlflow.get_tracking_uri()}")
    return _MLflow(client, identity)


def _exists(client: Any, identity: str) -> bool:
    """Whether the store has the run. Raises MlflowException if the store does not answer."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(identity).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _create(client: Any, run: RunFacts) -> str:
    from mlflow.entities import Param

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if experiment is None:
        old = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if old is None else old.experiment_id
    tags = {**run.tags, "folder": str(run.out.absolute())}
    identity: str = client.create_run(experiment, run_name=run.out.name or run.title, tags=tags).info.run_id
    run.remember("mlflow", run=identity)
    parameters = [Param(_key(key), str(value)[:LONGEST]) for key, value in flat(run.config).items()]
    for first in range(0, len(parameters), PARAMETERS_A_CALL):
        client.log_batch(identity, params=parameters[first : first + PARAMETERS_A_CALL])
    return identity


class _MLflow:
    def __init__(self, client: Any, identity: str) -> None:
        self._client, self._run = client, identity

    def last(self) -> int:
        latest = self._client.get_run(self._run).data.metrics
        names = [name for name in ("loss", *sorted(latest)) if name in latest][:1]
        steps = [metric.step for name in names for metric in self._client.get_metric_history(self._run, name)]
        return max(steps, default=0)

    def log(self, rows: Sequence[LogRow]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for part in _parts(rows):
            metrics = [
                Metric(_key(name), float(value), now, step)
                for step, row in part
                for name, value in row.items()
            ]
            self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: Status, final: Mapping[str, float]) -> None:
        if status == "finished":
            self.log([(self.last(), {f"final/{name}": value for name, value in final.items()})])
        self._client.set_terminated(self._run, _STATUS[status])


def _parts(rows: Sequence[LogRow]) -> Iterator[list[LogRow]]:
    """Rows in parts, one part a call; a step is never divided."""
    part: list[LogRow] = []
    for row in rows:
        if part and sum(len(numbers) for _, numbers in (*part, row)) > METRICS_A_CALL:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def _key(name: str) -> str:
    """``name`` with the characters that MLflow allows, for example ``val_miou/folder:a_val``."""
    parts = [re.sub(r"[^\w\-. :]", "_", part, flags=re.ASCII) for part in name.split("/")]
    return "/".join(part.replace(".", "_") if set(part) <= {"."} else part for part in parts if part)
