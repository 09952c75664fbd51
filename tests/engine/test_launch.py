"""The frame of a launcher with two real ranks: one ends by its own error, the other waits for it."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gkd_scale.engine import launch
from gkd_scale.engine.launch import LOST
from gkd_scale.engine.runtime import Runtime, free_port
from gkd_scale.errors import DataError, GkdError
from tests.conftest import environment
from tests.ranks import rank_environment

SCRIPT = """
import sys
from dataclasses import dataclass
from pathlib import Path
from gkd_scale.engine.launch import leave, main
from gkd_scale.errors import DataError

@dataclass
class Nothing:
    pass

def run(cfg, runtime, bundled):
    runtime.barrier()
    if runtime.rank == int(sys.argv[1]):
        raise DataError("7.png is broken", "mend it", on_rank=runtime.rank)
    runtime.barrier()

leave(main(Nothing, run, argv=[], launchers=Path(), prog="", description="", examples=""))
"""


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_ranks_own_error_is_one_line_and_so_is_what_the_others_say(culprit: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, tmp_path / "script.py", str(culprit)],
            env=environment() | rank_environment(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    other = 1 - culprit
    assert (ranks[culprit].returncode, ranks[other].returncode) == (2, 1), outputs
    who = f"rank {culprit}: " if culprit else ""
    assert f"error: {who}7.png is broken" in outputs[culprit]
    assert f"rank {other} lost the others" in outputs[other]
    assert not any("Traceback" in text for text in outputs), outputs


def test_errors_of_our_own_are_no_lost_peers() -> None:
    assert not LOST.search("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x2)")
    assert LOST.search("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2255")


@dataclass
class Nothing:
    """A config without options."""


@pytest.mark.parametrize("error", [None, DataError("7.png is broken", "mend it", on_rank=0)])
def test_only_a_rank_that_is_done_leaves_the_group(
    error: GkdError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error the others may sit in a collective, and to leave the group would wait for them."""
    runtimes: list[Runtime] = []
    monkeypatch.setattr(Runtime, "start", lambda *_: Runtime(0, 1, torch.device("cpu")))
    monkeypatch.setattr(Runtime, "stop", lambda self: runtimes.append(self))
    for name in ("_quiet", "keep_freed"):  # this process goes on with other tests
        monkeypatch.setattr(launch, name, lambda: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(launch.console, "explain_bugs", lambda: None)

    def run(*_: object) -> None:
        if error is not None:
            raise error

    status = launch.main(Nothing, run, argv=[], launchers=Path(), prog="", description="", examples="")
    assert (status, len(runtimes)) == ((2, 0) if error else (0, 1))


@pytest.mark.parametrize(("on_rank", "who"), [(None, 0), (0, 0), (1, 1)])
def test_one_rank_prints_an_error(on_rank: int | None, who: int, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        error = DataError("7.png is broken", "mend it", on_rank=on_rank)
        assert launch._report(error, rank) == 2
        assert ("7.png is broken" in capsys.readouterr().err) == (rank == who)
