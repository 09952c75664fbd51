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


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    """Before anything is built for them."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture
def hosts(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Host, Host]]:
    """Two hosts for one test; a parameter is what each takes its own name for."""
    with two_hosts(tmp_path / "etc", getattr(request, "param", None)) as both:
        yield both


@pytest.fixture(scope="session")
def reference(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two ranks on this machine."""
    out, port = tmp_path_factory.mktemp("undisturbed") / "run", free_port()
    command = [str(part) for part in (sys.executable, SCRIPT, *flags(tiny_cache, out))]
    ranks = [
        subprocess.Popen(
            command,
            env=environment() | Place(rank, 2, rank, "127.0.0.1", port).variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    return out
