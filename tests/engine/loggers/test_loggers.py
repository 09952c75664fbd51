"""Loggers through the run log, read back from their offline stores and compared with metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from gkd_scale.engine import loggers, runlog
from gkd_scale.engine.loggers import LogRow, RunFacts, Status, follower
from gkd_scale.engine.runtime import free_port
from gkd_scale.engine.stop import Stopped
from gkd_scale.errors import ConfigError
from tests.engine.loggers import stores

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.usefixtures("offline"),
]

CONFIG = {"seed": 3, "optim": {"lr": 0.1, "betas": [0.9, 0.999]}, "cache": []}
TAGS = {"kind": "stage1", "student": "tiny"}
DOMAIN = "val_miou/folder:a@night"


def write(
    out: Path, names: Sequence[str], start: int, stop: int, end: BaseException | None = None, last: int = 6
) -> None:
    """Log the steps after ``start``, up to ``stop``, of a run whose step is a checkpoint every two."""
    try:
        with runlog.RunLog([RunFacts("test", out, CONFIG, TAGS)], start, last, names=names) as log:
            for step in range(start + 1, stop + 1):
                log.step(step, [{"loss": 1 / step, "lr": 0.1, "grad_norm": None, DOMAIN: float(step)}])
            if end is not None:
                raise end
            log.finish([{"best_miou": 50.0}])
    except (Stopped, KeyError):
        pass


def expected(out: Path) -> stores.Numbers:
    return {
        row["step"]: {key: value for key, value in row.items() if key != "step" and value is not None}
        for row in runlog.read(out / runlog.METRICS)
    }


def test_all_three_have_the_numbers_of_metrics_jsonl_also_after_a_stop_and_a_crash(
    tmp_path: Path, store: str
) -> None:
    """Steps 1 to 4, stopped; again from 2 to 5, crashed; again from 4 to the end. TensorBoard from step 5."""
    out = tmp_path / "run"
    write(out, ["wandb", "mlflow"], 0, 4, Stopped(4, 6))
    assert stores.mlflow(store)[1].info.status == "KILLED"
    write(out, ["wandb", "mlflow"], 2, 5, KeyError("a bug"))
    assert stores.mlflow(store)[1].info.status == "FAILED"
    write(out, ["wandb", "mlflow", "tensorboard"], 4, 6)
    rows = expected(out)
    assert list(rows) == [1, 2, 3, 4, 5, 6]
    finals = {"final/best_miou": 50.0, "final/loss": 1 / 6, "final/lr": 0.1}

    history, summary, config, tags = stores.wandb(out)
    assert history == rows
    assert {key: summary[key] for key in finals} == finals
    assert (config["seed"], config["optim"]["lr"], tags) == (3, 0.1, {"stage1", "tiny"})

    numbers, run = stores.mlflow(store)
    assert {key: numbers[6][key] for key in finals} == finals
    assert {
        step: {key.replace("a_night", "a@night"): value for key, value in row.items() if "final/" not in key}
        for step, row in numbers.items()
    } == rows
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert (run.data.params["optim.lr"], run.data.tags["student"]) == ("0.1", "tiny")

    board = stores.tensorboard(out)
    assert {step: board[step]["loss"] for step in rows} == pytest.approx(
        {step: row["loss"] for step, row in rows.items()}
    )
    assert board[6]["final/best_miou"] == 50.0


def test_students_of_one_pass_are_runs_of_their_own(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    runs = [RunFacts(name, tmp_path / name) for name in ("one", "two")]
    with runlog.RunLog(runs, 0, 2, names=["mlflow"]) as log:
        for step in (1, 2):
            log.step(step, [{"loss": 1.0 * step}, {"loss": 10.0 * step}])
    client = MlflowClient()
    for run, loss in zip(runs, (2.0, 20.0), strict=True):
        entry = client.get_run(run.memory("mlflow")["run"])
        assert entry.info.run_name == run.title and entry.data.metrics["loss"] == loss


def test_tensorboard_goes_on_without_doubled_steps(tmp_path: Path) -> None:
    """Also where a run was killed before its first checkpoint."""
    for start in (0, 0, 2):
        write(tmp_path, ["tensorboard"], start, 4, KeyError("killed"))
    assert sorted(stores.tensorboard(tmp_path)) == [1, 2, 3, 4]


def test_a_store_that_is_gone_is_one_line_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write(tmp_path / "run", ["mlflow"], 0, 6)
    output = capsys.readouterr().out
    assert "mlflow failed, it lacks the last 6 steps" in output and output.count("mlflow failed") <= 2
    assert len(expected(tmp_path / "run")) == 6


class Flaky:
    """A store whose ``fails``-th call and those after it fail, until it is mended."""

    def __init__(self, fails: int) -> None:
        self.rows: list[int] = []
        self.calls, self.fails = 0, fails
        self.ended: Status | None = None

    def last(self) -> int:
        return max(self.rows, default=0)

    def log(self, rows: Sequence[LogRow]) -> None:
        for step, _ in rows:
            self.calls += 1
            if self.calls >= self.fails:
                raise OSError("no network")
            self.rows.append(step)

    def end(self, status: Status, final: Mapping[str, float]) -> None:  # noqa: ARG002
        self.ended = status


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_logger_missed_is_sent_when_it_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "RETRY", 0.05)
    flaky, messages = Flaky(3), list[str]()
    writer = follower.Follower("store", lambda: flaky, [(1, {}), (2, {})], messages.append)
    for step in (3, 4):
        writer.put(step, {})
    wait_for(lambda: bool(messages))
    writer.put(5, {})
    flaky.fails = 10**9
    wait_for(lambda: len(messages) == 2)
    writer.close("finished", {})
    assert flaky.rows == [1, 2, 3, 4, 5] and flaky.ended == "finished"
    assert messages == ["store failed, training goes on without it: no network", "store works again"]


def test_a_logger_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(follower.PATIENCE, "finished", 0.1)
    messages: list[str] = []
    writer = follower.Follower("store", lambda: time.sleep(5) or Flaky(0), [], messages.append)
    writer.put(1, {})
    writer.close("finished", {})
    assert messages == ["store does not answer: what it lacks is in metrics.jsonl"]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"--log mlflow needs the package mlflow.*\n.*gkd-scale\[mlflow\]"):
        loggers.require(["mlflow"])


def test_a_broken_package_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AttributeError("no attribute 'x'")

    monkeypatch.setattr("gkd_scale.engine.loggers.mlflow.require", fail)
    with pytest.raises(ConfigError, match="the package mlflow cannot be used: no attribute"):
        loggers.require(["mlflow"])


def test_names_that_mlflow_refuses_are_changed() -> None:
    from mlflow.utils.validation import _validate_metric_name

    from gkd_scale.engine.loggers.mlflow import _key

    for name in ("val_miou/folder:../a b@night", "/absolute//x/./y", "..", "val_miou/ü#[%]"):
        _validate_metric_name(_key(name))
    assert _key("loss_feature") == "loss_feature"


def test_none_stands_alone_and_a_name_counts_once() -> None:
    assert loggers.select(["wandb", "mlflow", "wandb"]) == ["wandb", "mlflow"]
    assert loggers.select(["none"]) == []
    with pytest.raises(ConfigError, match="none is given beside wandb"):
        loggers.select(["none", "wandb"])
