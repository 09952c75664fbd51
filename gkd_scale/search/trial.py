"""One trial: a stage-1 run in a folder of its own, as one actor a rank.

The trial's own actor is rank 0; it starts the other ranks as actors in the rest of its placement group,
so every accelerator trains and none waits. Ray's worker group hung under Tune (see README.md), and a
launcher subprocess would outlive an actor that is killed; these actors die with their owner.

A trial's state is its run folder: stage 1's checkpoints and ``metrics.jsonl``, where each report is a row
that holds a ``miou``. A trial that is started again, on this or another node, goes on from there.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray import tune

from gkd_scale import files
from gkd_scale.config import copy_with, to_dict
from gkd_scale.distill import stage1
from gkd_scale.engine import checkpoint, runlog
from gkd_scale.engine.loop import Hook
from gkd_scale.engine.runtime import Runtime, free_port
from gkd_scale.engine.zero import full_state
from gkd_scale.errors import DiskFullError, GkdError
from gkd_scale.search.checks import LAUNCHERS, SearchPlan
from gkd_scale.search.results import METRIC
from gkd_scale.segment import probe
from gkd_scale.segment.datasets import registry
from gkd_scale.types import SegDataset

ENDED = "ended.txt"
"""In a trial's folder once it is done or stopped; Tune's own snapshot may be older than that."""
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What PyTorch's allocators say if memory runs out."""
GRACE = 20.0
"""Seconds that rank 0 may take to notice by itself that another rank died."""


def train(params: dict[str, Any], plan: SearchPlan) -> None:
    """What Tune runs: train with the options ``params`` and report after every ``plan.trial.every`` steps.

    A failure that would come again (a loss that is not finite, no memory) is reported with its cause and
    ends the trial; any other is raised, and Tune starts the trial again.
    """
    name = tune.get_context().get_trial_id()
    out = plan.out / "trials" / name
    out.mkdir(parents=True, exist_ok=True)
    with files.hold(out / "lock", lambda _: None):  # an actor that is being killed may linger
        params = {key: value for key, value in params.items() if key in plan.space.searched}
        forked = _fork(plan, name, params)
        last = last_report(out)
        if last and not forked:
            _report(plan, name, last)
        if (out / ENDED).exists():
            return
        try:
            _train_ranks(plan, params, name)
        except DiskFullError:
            raise
        except (GkdError, MemoryError) as error:
            _fail(out, error)
        except RuntimeError as error:  # a GPU's and a CPU's allocator both raise one
            if not any(phrase in str(error).lower() for phrase in NO_MEMORY):
                raise
            _fail(out, error)


def _fail(out: Path, error: BaseException) -> None:
    message = error.message if isinstance(error, GkdError) else f"{type(error).__name__}: {error}"
    cause = " ".join(message.split())
    files.write_text(out / "failure.txt", "".join(traceback.format_exception(error)))
    step = (last_report(out) or {"step": 0})["step"]
    tune.report({METRIC: 0.0, "step": step, "failed": cause[:300], **_here()})


# ------------------------------------------------------------------------------------------ ranks


def _train_ranks(plan: SearchPlan, params: dict[str, Any], name: str) -> None:
    """Rank 0 here, the others as actors; the first failure of any of them ends all."""
    address = {"MASTER_ADDR": ray.util.get_node_ip_address(), "MASTER_PORT": str(free_port())}
    group = ray.util.get_current_placement_group()
    peers, futures = [], []
    for rank in range(1, plan.trial.workers):
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, rank)
        peer = Peer.options(  # type: ignore[attr-defined]
            num_cpus=plan.cpu, num_gpus=plan.gpu, scheduling_strategy=strategy
        ).remote()
        peers.append(peer)
        futures.append(peer.train.remote(plan, params, name, rank, address))
    if peers:
        threading.Thread(target=_watch, args=(futures, plan.out / "trials" / name), daemon=True).start()
    rank_main(plan, params, name, 0, address)
    ray.get(futures)


def _watch(futures: list[Any], out: Path) -> None:
    """End this process if another rank dies and rank 0 would wait for it forever."""
    ready, _ = ray.wait(futures, num_returns=1)
    try:
        ray.get(ready)
    except Exception as error:
        time.sleep(GRACE)
        files.write_text(out / "failure.txt", f"a rank was lost: {error}\n")
        os._exit(1)


@ray.remote(max_restarts=0)
class Peer:
    """A rank other than 0."""

    def train(self, *arguments: Any) -> None:
        """:func:`rank_main`."""
        rank_main(*arguments)


def rank_main(
    plan: SearchPlan, params: dict[str, Any], name: str, rank: int, address: dict[str, str]
) -> None:
    """Stage 1 on one rank; its output goes to ``log-RANK.txt``. Each rank sees one GPU, its own."""
    out = plan.out / "trials" / name
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(plan.trial.workers), **address}
    with _log_to(out / f"log-{rank}.txt"):
        cfg = copy_with(plan.stage1(params, out), keep=plan.keep)
        runtime = Runtime.start()
        prepare = functools.partial(_prepare, plan=plan, name=name, runtime=runtime)
        stage1.train(cfg, runtime, LAUNCHERS, prepare)
        runtime.barrier()
        runtime.stop()


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", buffering=1, encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            raise


# ---------------------------------------------------------------------------------- probe and report


def _prepare(job: Any, *, plan: SearchPlan, name: str, runtime: Any) -> None:
    """Let stage 1's loop probe the student every ``plan.trial.every`` steps, and report what was saved."""
    out = plan.out / "trials" / name
    seconds = (last_report(out) or {"seconds": 0.0})["seconds"]
    measure = Measure(plan, job.module.student, runtime, seconds)

    def on_save(step: int) -> None:
        last = last_report(out) if runtime.main else None
        if last and last["step"] == step:
            _report(plan, name, last)

    job.hooks.append(Hook(plan.trial.every, measure))
    job.on_save = on_save


class Measure:
    """The hook: gathers the student on every rank, probes it on rank 0. Labels never enter training."""

    def __init__(self, plan: SearchPlan, student: Any, runtime: Any, seconds: float) -> None:
        self.kind, self.runtime = plan.trial.probe, runtime
        self.began = time.monotonic() - seconds
        if runtime.main:
            self.student = copy.deepcopy(student).to(runtime.device).eval().requires_grad_(False)
            datasets: dict[str, SegDataset] = {"": registry.open_all(list(plan.train.values()))}
            datasets |= {key: registry.open_dataset(ref) for key, ref in plan.val.items()}
            data = {
                key: probe.load(dataset, plan.image_size, most=plan.trial.probe_images)
                for key, dataset in datasets.items()
            }
            self.fit, self.val = data.pop(""), data

    def __call__(self, _step: int, module: Any) -> dict[str, Any]:
        """mIoU in percent, of each selection domain and their mean; training seconds; and where it ran."""
        state = full_state(module.student)
        if not self.runtime.main:
            return {}
        self.student.load_state_dict(state)
        encode, grid = (lambda pixels: self.student(pixels.to(self.runtime.device))), self.student.grid
        scores = {
            f"{METRIC}/{name}": 100 * probe.probe(encode, grid, self.fit, data, self.kind).miou()
            for name, data in self.val.items()
        }
        mean = statistics.fmean(scores.values())
        seconds = round(time.monotonic() - self.began, 2)
        return {METRIC: mean, **scores, "seconds": seconds, **_here()}


def _here() -> dict[str, str]:
    """This machine, by its name and by Ray's."""
    return {"host": socket.gethostname(), "node": ray.get_runtime_context().get_node_id()[:8]}


def last_report(out: Path) -> dict[str, Any] | None:
    """The newest report of a trial whose checkpoint is whole; None before the first."""
    path, steps = out / runlog.METRICS, checkpoint.steps(out / "checkpoints")
    rows = runlog.read(path) if path.exists() and steps else []
    return next((row for row in reversed(rows) if METRIC in row and row["step"] <= steps[-1]), None)


def _report(plan: SearchPlan, name: str, row: dict[str, Any]) -> None:
    """Hand a row of ``metrics.jsonl`` to Tune. For population-based training a checkpoint goes along: a
    tiny folder that says where the real one is."""
    row = {**row, "report": -(-row["step"] // plan.trial.every)}
    if plan.keep == 2:
        tune.report(row)
        return
    with tempfile.TemporaryDirectory() as folder:
        files.write_json(Path(folder) / "pointer.json", {"trial": name, "step": row["step"]})
        tune.report(row, checkpoint=tune.Checkpoint.from_directory(folder))


# --------------------------------------------------------------------------------------------- PBT


def _fork(plan: SearchPlan, name: str, params: dict[str, Any]) -> bool:
    """Go on from another trial's checkpoint, with this trial's options; False if Tune hands none over."""
    pointer = tune.get_checkpoint()
    if pointer is None:
        return False
    with pointer.as_directory() as folder:
        donor = json.loads((Path(folder) / "pointer.json").read_text())
    if donor["trial"] == name:
        return False
    trials = plan.out / "trials"
    source = checkpoint.path(trials / donor["trial"] / "checkpoints", donor["step"])
    options = to_dict(plan.stage1(params, trials / name))
    changes = {key: options[key] for key in ("optim", "loss", "mask", "drop_path")}
    checkpoint.fork(source, trials / name / "checkpoints", changes)
    return True
