from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console, RenderableType

from gkd_scale.search.live import Board
from gkd_scale.search.results import DONE, FAILED, RUNNING, STOPPED, Trial
from gkd_scale.search.table import table


def trial(number: int, status: str, *curve: tuple[int, float]) -> Trial:
    return Trial(f"t{number}", number, status, None, {"optim.lr": 1e-3 * number}, list(curve), 2.0)


TRIALS = [
    trial(1, STOPPED, (4, 50.0)),
    trial(2, DONE, (4, 40.0), (8, 45.0)),
    trial(3, RUNNING),
    trial(4, DONE, (4, 41.0), (8, 44.0)),
]


def lines(content: RenderableType, width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(content)
    return [line.strip() for line in capture.get().splitlines()]


def test_those_that_went_furthest_come_first() -> None:
    rows = lines(table(TRIALS, 8))[2:]
    assert [line.split()[0] for line in rows] == ["2", "4", "1", "3"]
    assert rows[0].split() == ["2", "done", "8/8", "45.00", "2", "0.002"]


def test_a_table_with_a_limit_shows_what_runs() -> None:
    assert [line.split()[0] for line in lines(table(TRIALS, 8, limit=2))[2:]] == ["2", "3"]


def test_a_narrow_terminal_cuts_options_first() -> None:
    rows = lines(table(TRIALS, 8), width=48)
    assert all(len(line) <= 48 for line in rows)
    assert "45.00" in rows[2] and "done" in rows[2]


def test_the_board_shows_trials_before_their_first_report_and_why_others_failed(tmp_path: Path) -> None:
    board = Board(tmp_path, 8, 4)
    trials: list[Any] = [
        SimpleNamespace(trial_id=name, status=status, config={"optim.lr": 0.5}, last_result=result)
        for name, status, result in (
            ("a", "TERMINATED", {"step": 8, "miou": 40.0}),
            ("b", "TERMINATED", {"step": 2, "miou": 0.0, "failed": "loss is not finite"}),
            ("c", "RUNNING", {}),
        )
    ]
    for each in trials[:2]:
        board.on_trial_result(0, trials, each, each.last_result)
        board.on_trial_complete(0, trials, each)
    board.on_experiment_end(trials)
    output = "\n".join(lines(board.render()))
    assert "2 of 4 trials ended · 1 running · 1 done · 1 failed" in output
    assert "best mIoU 40.00 (trial 1, step 8)" in output
    assert f"trial 2 {FAILED}: loss is not finite" in output
    assert "0/8" in output
