"""The log of a run: one object a step, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

from gkd_scale.engine import runlog
from gkd_scale.engine.loggers import RunFacts


def steps(out: Path) -> list[int]:
    return [row["step"] for row in runlog.read(out / "metrics.jsonl")]


def write(out: Path, start: int, *numbers: int, loss: float = 1.0) -> None:
    with runlog.RunLog([RunFacts("test", out)], start, 9) as log:
        for step in numbers:
            log.step(step, [{"loss": loss / step, "lr": 0.1}])


def test_one_object_a_step(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3)
    rows = runlog.read(tmp_path / "metrics.jsonl")
    assert rows[1] == {"step": 2, "loss": 0.5, "lr": 0.1}
    assert list((tmp_path / "tensorboard").iterdir())


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3, 4)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # cut by a kill
    write(tmp_path, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_runs_of_one_pass_have_files_of_their_own(tmp_path: Path) -> None:
    runs = [RunFacts("one", tmp_path / "one"), RunFacts("two", tmp_path / "two")]
    with runlog.RunLog(runs, 0, 2) as log:
        for step in (1, 2):
            log.step(step, [{"loss": 1.0}, {"loss": 2.0}])
    for run, loss in zip(runs, (1.0, 2.0), strict=True):
        assert [row["loss"] for row in runlog.read(run.out / "metrics.jsonl")] == [loss, loss]


def test_a_gradient_norm_that_is_infinite_is_null(tmp_path: Path) -> None:
    """As of a step that fp16 skips: the file stays JSON, also when a run goes on from an older one."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    def strict() -> list[dict[str, object]]:
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line, parse_constant=refuse) for line in lines]

    with runlog.RunLog([RunFacts("test", tmp_path)], 0, 9) as log:
        log.step(1, [{"loss": 1.0, "grad_norm": float("inf")}])
    assert strict() == [{"step": 1, "loss": 1.0, "grad_norm": None}]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 1.0, "grad_norm": Infinity}\n')
    write(tmp_path, 2, 3)
    assert [row.get("grad_norm", 0) for row in strict()] == [None, None, 0]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with runlog.RunLog([RunFacts("test", tmp_path / "out")], 0, 2, enabled=False) as log:
        log.step(1, [{"loss": 1.0}])
        log.note("nothing")
    assert not (tmp_path / "out").exists()
