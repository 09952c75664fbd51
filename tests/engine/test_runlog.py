"""The log of a run: one object a step, also after a kill."""

from __future__ import annotations

from pathlib import Path

from gkd_scale.engine import runlog


def steps(out: Path) -> list[int]:
    return [row["step"] for row in runlog.read(out / "metrics.jsonl")]


def test_one_object_a_step(tmp_path: Path) -> None:
    log = runlog.RunLog(tmp_path, "test", 0, 3)
    for step in (1, 2, 3):
        log.step(step, {"loss": 1.0 / step, "lr": 0.1})
    log.close()
    rows = runlog.read(tmp_path / "metrics.jsonl")
    assert rows[1] == {"step": 2, "loss": 0.5, "lr": 0.1}
    assert list((tmp_path / "tensorboard").iterdir())


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = runlog.RunLog(tmp_path, "test", 0, 9)
    for step in (1, 2, 3, 4):
        log.step(step, {"loss": 1.0})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # cut by a kill
    log = runlog.RunLog(tmp_path, "test", 2, 9)
    log.step(3, {"loss": 2.0})
    log.close()
    assert steps(tmp_path) == [1, 2, 3]
