"""The frame of a launcher with two real ranks: one ends by its own error, the other waits for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gkd_scale.engine.launch import LOST
from gkd_scale.engine.runtime import free_port
from tests.conftest import environment

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

leave(main(Nothing, run, argv=[], bundled=Path(), prog="", description="", examples=""))
"""


@pytest.mark.parametrize("broken", [0, 1])
def test_a_ranks_own_error_is_one_line_and_so_is_what_the_others_say(broken: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, tmp_path / "script.py", str(broken)],
            env=environment()
            | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_PORT": f"{port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=200)[0] for rank in ranks]
    other = 1 - broken
    assert (ranks[broken].returncode, ranks[other].returncode) == (2, 1), said
    who = f"rank {broken}: " if broken else ""
    assert f"error: {who}7.png is broken" in said[broken]
    assert f"rank {other} lost the others" in said[other]
    assert not any("Traceback" in text for text in said), said


def test_errors_of_our_own_are_no_lost_peers() -> None:
    assert not LOST.search("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x2)")
    assert LOST.search("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2255")
