"""The environment of a rank, and how ranks find each other."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gkd_scale.engine import world
from gkd_scale.engine.world import Place, free_port, gather, place, unused_tasks
from gkd_scale.errors import ConfigError, GkdError, UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SLURM = (
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NTASKS",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_JOB_ID",
)
values = st.sampled_from(["0", "1", "2", "3", "-1", "", "x", "1.5", "65536", "29500"])


@given(st.dictionaries(st.sampled_from(NAMES + SLURM), values))
@example({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "65536"})
def test_any_environment_is_a_place_or_one_error(environment: dict[str, str]) -> None:
    try:
        at = place(environment)
    except ConfigError as error:
        assert error.hint and error.on_rank is not None
        return
    assert 0 <= at.rank < at.world and 0 <= at.local < at.world and 0 < at.port < 2**16
    if at.world > 1:
        assert str(at.world) in environment.values()


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))))
def test_launchers_are_believed(rank_world: tuple[int, int]) -> None:
    rank, size = rank_world
    local = rank % 8
    spot = Place(rank, size, local, "node-1", 29500)
    result = place(spot.variables() | {"LOCAL_WORLD_SIZE": "8"} if size > 8 else spot.variables())
    assert (result.rank, result.world, result.local) == (rank, size, local)
    task = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_STEP_NUM_TASKS": str(size)}
    result = place({**task, "SLURM_NTASKS": "999", "SLURM_JOB_ID": "41234", "SLURM_STEP_ID": "2"})
    if size > 1:
        assert (result.rank, result.world, result.local, result.port) == (rank, size, local, 21236)


def test_only_a_step_of_slurm_is_a_world() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}
    assert place(batch).world == 1 and unused_tasks(batch) == 15
    assert place({**batch, "SLURM_STEP_ID": "0"}).world == 16  # an older Slurm
    alone = {**batch, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}  # salloc's shell
    assert place(alone).world == 1
    inside = {**batch, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}  # torchrun in a batch script
    assert place(inside).world == 2 and unused_tasks(inside) == 0


@pytest.mark.parametrize("text", ["", "x", "0", "-5", "nan", "inf"])
def test_a_patience_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="GKD_SCALE_JOIN_SECONDS"):
        world.patience({"GKD_SCALE_JOIN_SECONDS": text}, 0)
    assert world.patience({}, 0) == 600


class Ranks:
    """Ranks as threads; what each ended with, and what was said."""

    def __init__(self) -> None:
        self.port = free_port()
        self.said: list[str] = []
        self.ends: dict[str, Any] = {}
        self.threads: list[threading.Thread] = []

    def start(self, name: str, rank: int, size: int, wait: float = 20.0) -> None:
        def join() -> None:
            at = Place(rank, size, rank, "127.0.0.1", self.port)
            try:
                self.ends[name] = gather(at, None, wait, self.said.append)
            except GkdError as error:
                self.ends[name] = error

        self.threads.append(threading.Thread(target=join))
        self.threads[-1].start()

    def end(self) -> dict[str, Any]:
        for thread in self.threads:
            thread.join()
        return self.ends


def failures(ends: dict[str, Any]) -> dict[str, str]:
    return {name: end.message for name, end in ends.items() if isinstance(end, GkdError)}


def test_all_come_in_any_order() -> None:
    ranks = Ranks()
    for rank in (2, 0, 1):
        ranks.start(str(rank), rank, 3)
    assert failures(ranks.end()) == {} and ranks.said == []


def test_the_first_that_is_there_says_who_is_missing_and_all_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "REMARK_AFTER", 0.2)
    ranks = Ranks()
    for rank in (0, 2):
        ranks.start(str(rank), rank, 4, wait=1.0)
    ends = failures(ranks.end())
    assert len(ranks.said) == 1 and "ranks 1, 3 of 4 are missing" in ranks.said[0]
    assert all("ranks 1, 3 of 4 are missing" in text or "rank 0 left" in text for text in ends.values())
    assert set(ends) == {"0", "2"}
    assert [ranks.ends[name].on_rank for name in ("0", "2")] == [0, None]
    assert all(isinstance(end, UserError) for end in ranks.ends.values())


def test_two_launches_on_one_port_do_not_mix() -> None:
    ranks = Ranks()
    for rank in (0, 1):
        ranks.start(f"first {rank}", rank, 2)
    first = ranks.end()
    assert failures(first) == {}
    ranks.start("second 1", 1, 2)
    ranks.start("third 2", 2, 3, wait=2.0)
    ends = failures(ranks.end())
    assert "rank 1 of 2 is there twice" in ends["second 1"]
    assert "rank 2 has WORLD_SIZE=3, rank 0" in ends["third 2"]
