from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gkd_scale.search.results import DONE, FAILED, STOPPED, Results, best


def fill(out: Path) -> Results:
    results = Results(out)
    for step, score in ((5, 30.0), (10, 40.0)):
        results.add("a", {"optim.lr": 1e-3}, {"step": step, "miou": score, "number": 1, "host": "h"})
    results.add("b", {"optim.lr": 1e-2}, {"step": 5, "miou": 50.0, "number": 2, "host": "h"})
    results.add("c", {"optim.lr": 1.0}, {"step": 5, "miou": 0.0, "number": 3, "failed": "not finite"})
    for name, status in (("a", DONE), ("b", STOPPED), ("c", FAILED)):
        results.mark(name, 0, status, {})
    return results


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    results = fill(tmp_path)
    results.write()
    again = Results(tmp_path)
    assert again.trials() == results.trials()
    again.write()
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [(row["trial"], row["step"], row["miou"]) for row in table] == [
        ("a", 5, 30.0),
        ("a", 10, 40.0),
        ("b", 5, 50.0),
        ("c", 5, None),
    ]
    assert table[0]["config.optim.lr"] == 1e-3
    assert table[-1]["cause"] == "not finite"


def test_a_report_that_comes_twice_is_one_row(tmp_path: Path) -> None:
    results = fill(tmp_path)
    results.add("a", {"optim.lr": 1e-3}, {"step": 10, "miou": 41.0, "number": 1})
    assert results.trials()[0].curve == [(5, 30.0), (10, 41.0)]


def test_the_best_is_among_those_that_went_furthest(tmp_path: Path) -> None:
    trials = fill(tmp_path).trials()
    winner = best(trials, 10)
    assert winner is not None and winner.name == "a"  # b has more, after half the steps
    assert best([trial for trial in trials if trial.status == FAILED], 10) is None


def test_a_trial_that_failed_before_it_reported_has_a_row(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.mark("x", 1, FAILED, {"optim.lr": 1.0}, "its process was lost")
    (trial,) = results.trials()
    assert (trial.score, trial.cause, trial.config) == (None, "its process was lost", {"optim.lr": 1.0})


@pytest.mark.parametrize("values", [[1, 0.5], ["x", 1], [True, False]])
def test_choices_of_mixed_types_can_be_written(tmp_path: Path, values: list[object]) -> None:
    results = Results(tmp_path)
    for index, value in enumerate(values):
        results.add(str(index), {"any": value}, {"step": 1, "miou": 1.0, "number": index})
    results.write()
    assert len(Results(tmp_path).trials()) == len(values)
