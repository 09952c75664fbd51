"""Checkpoints are written beside the steps: what is whole when, and an error that is not lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gkd_scale.engine import checkpoint
from gkd_scale.engine.loop import Hook
from gkd_scale.engine.runtime import Runtime
from tests.cases.case import world_of_one
from tests.distill.test_stage1 import config, files_of, losses, train

Write = Any


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with world_of_one() as runtime:
        yield runtime


def test_steps_go_on_while_a_checkpoint_is_written(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole before the next one begins, and the last one before the run is done."""
    plain, slow = tmp_path / "plain", tmp_path / "slow"
    train(runtime, config(tiny_cache, plain))
    write, go_on, log = checkpoint.write, threading.Event(), list[str]()

    def hold(folder: Path, snapshot: checkpoint.Snapshot) -> None:
        log.append(f"begin {snapshot.step}")
        assert go_on.wait(60)
        write(folder, snapshot)
        log.append(f"end {snapshot.step}")

    def look(step: int, _module: Any) -> dict[str, float]:
        log.append(f"step {step}")
        if step == 3:
            assert checkpoint.steps(slow / "checkpoints") == []
            go_on.set()
        return {}

    monkeypatch.setattr(checkpoint, "write", hold)
    train(runtime, config(tiny_cache, slow), Hook(1, look))
    assert log.index("begin 2") < log.index("step 3") < log.index("end 2") < log.index("begin 4")
    assert log.index("end 4") < log.index("begin 6") < log.index("end 6")
    assert files_of(slow) == files_of(plain)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_step(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before stays, and the same command goes on from it to the same bytes."""
    plain, full = tmp_path / "plain", tmp_path / "full"
    train(runtime, config(tiny_cache, plain))
    write, failure = checkpoint.write, threading.Event()

    def refuse(folder: Path, snapshot: checkpoint.Snapshot) -> None:
        if snapshot.step == 4:
            failure.set()
            raise OSError(28, "No space left on device")
        write(folder, snapshot)

    def look(step: int, _module: Any) -> dict[str, float]:
        if step == 5:
            assert failure.wait(60)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", refuse)
        with pytest.raises(OSError, match="No space left"):
            train(runtime, config(tiny_cache, full, save_every=2, steps=60), Hook(1, look))
    assert len(losses(full)) <= 6 and checkpoint.steps(full / "checkpoints") == [2]


def test_an_error_of_the_training_leaves_a_whole_checkpoint(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, late = checkpoint.write, threading.Event()

    def hold(folder: Path, snapshot: checkpoint.Snapshot) -> None:
        late.wait(0.5)
        write(folder, snapshot)

    def fail(step: int, _module: Any) -> dict[str, float]:
        if step == 3:
            raise ArithmeticError
        return {}

    monkeypatch.setattr(checkpoint, "write", hold)
    with pytest.raises(ArithmeticError):
        train(runtime, config(tiny_cache, tmp_path), Hook(1, fail))
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]
    assert not list((tmp_path / "checkpoints").glob("*.part"))
