"""Two hosts for a test, or a plain reason why there are none; a tiny stage 1 to run on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gkd_scale.engine.world import Place, free_port
from tests.conftest import environment

from .network import SECONDS, Host, missing, two_hosts
from .stage1 import SCRIPT, flags


@pytest.fixture
def hosts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Host, Host]]:
    """Two hosts for one test; a parameter is what each takes its own name for."""
    if reason := missing():
        pytest.skip(reason)
    with two_hosts(tmp_path / "etc", getattr(request, "param", None)) as both:
        yield both


@pytest.fixture(scope="session")
def undisturbed(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two ranks on this machine."""
    out, port = tmp_path_factory.mktemp("undisturbed") / "run", free_port()
    ranks = [
        start([sys.executable, SCRIPT, *flags(tiny_cache, out)], Place(rank, 2, rank, "127.0.0.1", port))
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return out


def start(command: list[object], place: Place) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        env=environment() | place.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
