"""Two real ranks, of which one is late: the run ends, and names it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gkd_scale.engine import ds_config, loop
from gkd_scale.engine.config import RunConfig
from gkd_scale.engine.watchdog import COMPUTING, READING, Watchdog, _error
from tests import warm
from tests.cases.case import world_of_one
from tests.conftest import ROOT

SCRIPT = """
import signal, sys, time
from dataclasses import dataclass
from pathlib import Path
import torch
from gkd_scale.engine.launch import leave, main
from gkd_scale.engine.watchdog import COMPUTING, READING, Watchdog

@dataclass
class Nothing:
    pass

def run(cfg, runtime, bundled):
    with Watchdog(runtime, 0.1, Path("run")) as watchdog:
        for step in (1, 2, 3):
            watchdog.at(step, READING)
            if runtime.rank == WHO and step == 3:
                LATE
            watchdog.at(step, COMPUTING)
            runtime.sum(torch.ones(4))
            watchdog.rest()
            time.sleep(8 if step == 1 else 0)

leave(main(Nothing, run, argv=[], launchers=Path(), prog="", description="", examples=""))
"""
STOP = "signal.raise_signal(signal.SIGSTOP)"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("who", "late", "message"),
    [
        (1, "time.sleep(300)", "rank 1 is late, reading data for step 3; the others are computing in step 3"),
        (1, STOP, "rank 1 does not answer; the others are computing in step 3"),
        (0, STOP, "rank 0 does not answer; rank 1 is computing in step 3"),
    ],
)
def test_a_late_rank_is_named_with_its_step(who: int, late: str, message: str, tmp_path: Path) -> None:
    """What takes longer than the limit between steps ends nothing."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("WHO", str(who)).replace("LATE", late))
    ranks = warm.start([str(tmp_path / "script.py")], tmp_path, tmp_path / "log", 2)
    try:
        for rank in (1 - who,) if late == STOP else (1 - who, who):
            ranks[rank].join(timeout=300)
            assert ranks[rank].exitcode == 1
    finally:
        for process in ranks:
            process.kill()
            process.join()
    text = " ".join((tmp_path / "log").read_text().split())
    assert f"error: no step for 0.1 minutes: {message}" in text
    assert text.count("no step for") == 1 and "Traceback" not in text
    assert pickle.loads((tmp_path / "run/flight-recorder" / f"rank_{1 - who}").read_bytes())["entries"]


def test_the_loop_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []

    class Listener(Watchdog):
        def at(self, step: int, doing: str) -> None:
            events.append((step, doing))

        def rest(self) -> None:
            events.append("rest")

    class Toy(nn.Linear):
        def forward(self, batch: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"loss": super().forward(batch).square().mean()}

    def hook(_step: int, _module: nn.Module) -> dict[str, float]:
        events.append("hook")
        return {}

    monkeypatch.setattr(loop, "Watchdog", Listener)
    job = loop.Job("toy", Toy(4, 4), lambda _: 1e-3, tmp_path, hooks=[loop.Hook(2, hook)])
    with world_of_one() as runtime:
        plan = ds_config.resolve(
            "zero0.json", ROOT / "launchers", global_batch=2, world=1, device=runtime.device, default=2
        )
        batches = lambda start, stop: (torch.ones(2, 4) for _ in range(start, stop))  # noqa: E731
        loop.fit([job], loop.TrainingPlan(batches, 2, RunConfig(log=["none"])), runtime, plan)
    step = [[(number, READING), (number, COMPUTING), "rest"] for number in (1, 2)]
    assert events == [*step[0], *step[1], "hook"]


def test_ranks_that_are_equally_far_are_not_called_late() -> None:
    places = dict.fromkeys(range(4), (7, COMPUTING))
    assert "one rank hangs, or the network; all are computing in step 7" in str(_error(places, 4, 30))
    places[2] = (7, READING)
    assert "rank 2 is late, reading data for step 7" in str(_error(places, 4, 30))
    places[1] = (6, COMPUTING)
    assert "rank 1 is late, computing for step 6" in str(_error(places, 4, 30))
    assert "ranks 4, 5 do not answer" in str(_error(places, 6, 30))
