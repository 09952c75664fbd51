"""What loggers' offline stores hold, read back: step to numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Numbers = dict[int, dict[str, float]]


def tensorboard(out: Path) -> Numbers:
    """The scalars of event files; a step that is there twice fails."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), {"scalars": 0}).Reload()
    numbers: Numbers = {}
    for name in events.Tags()["scalars"]:
        for each in events.Scalars(name):
            assert name not in numbers.setdefault(each.step, {}), (name, each.step)
            numbers[each.step][name] = each.value
    return numbers


def wandb(out: Path) -> tuple[Numbers, dict[str, Any], dict[str, Any], set[str]]:
    """History, summary, config and tags of the one run in offline files; a step that is there twice fails."""
    from gkd_scale.engine.loggers.wandb import records

    history: Numbers = {}
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}
    tags: set[str] = set()
    runs = set()
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {_name(item): json.loads(item.value_json) for item in record.history.item}
                step = record.history.step.num
                assert step not in history
                history[step] = {key: value for key, value in row.items() if not key.startswith("_")}
            elif kind == "summary":
                summary.update({_name(each): json.loads(each.value_json) for each in record.summary.update})
            elif kind == "run":
                runs.add(record.run.run_id)
                config.update({each.key: json.loads(each.value_json) for each in record.run.config.update})
                tags.update(record.run.tags)
    assert len(runs) == 1, runs
    return history, summary, config, tags


def _name(item: Any) -> str:
    return str(item.key) or ".".join(item.nested_key)


def mlflow(uri: str) -> tuple[Numbers, Any]:
    """The history of the one run in a store, and that run; a step that is there twice fails."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "gkd-scale"]
    (run,) = client.search_runs([experiment.experiment_id])
    numbers: Numbers = {}
    for name in run.data.metrics:
        for each in client.get_metric_history(run.info.run_id, name):
            assert name not in numbers.setdefault(each.step, {}), (name, each.step)
            numbers[each.step][name] = each.value
    return numbers, run
