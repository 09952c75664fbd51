"""What stops a run, and what the user is told once."""

from __future__ import annotations

import pytest

from gkd_scale.engine.health import DEAD, PATIENCE, WINDOW, DataWaitMonitor, HealthCheck
from gkd_scale.errors import UserError


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(value: float) -> None:
    with pytest.raises(UserError, match="loss_mask is not finite at step 7"):
        HealthCheck().check({"loss": 1.0, "loss_mask": value}, 7)


def test_a_student_that_stays_dead_stops_the_run() -> None:
    health = HealthCheck()
    for step in range(1, PATIENCE):
        health.check({"loss": 1.0, "token_variance": DEAD / 2}, step)
    with pytest.raises(UserError, match=f"the student is dead: at step {PATIENCE}"):
        health.check({"loss": 1.0, "token_variance": 0.0}, PATIENCE)


def test_one_living_step_starts_the_count_again() -> None:
    health = HealthCheck()
    for step in range(1, 5 * PATIENCE):
        health.check({"loss": 1.0, "token_variance": 0.3 if step % PATIENCE == 0 else 0.0}, step)


def test_a_run_without_tokens_is_never_dead() -> None:
    health = HealthCheck()
    for step in range(1, 2 * PATIENCE):
        health.check({"loss": 1.0}, step)


def test_waiting_for_data_is_told_once_with_its_cause() -> None:
    waits = DataWaitMonitor(lambda: "the disk")
    lines = [waits.step(waited=0.6, seconds=1.0) for _ in range(3 * WINDOW)]
    assert lines[WINDOW - 1] == f"60% of the last {WINDOW} steps went into waiting for data: the disk"
    assert [line for line in lines if line] == [lines[WINDOW - 1]]


def test_half_the_time_is_not_too_much() -> None:
    waits = DataWaitMonitor(lambda: "the disk")
    assert not any(waits.step(waited=0.5, seconds=1.0) for _ in range(2 * WINDOW))
