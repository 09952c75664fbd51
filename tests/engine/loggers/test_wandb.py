"""wandb without a key, without a network: each in a process of its own, as wandb keeps its login in one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gkd_scale.engine.runtime import free_port
from tests import conftest
from tests.engine.loggers import stores

LOG = """
import sys
from pathlib import Path
from gkd_scale.engine import loggers, runlog
loggers.require(["wandb"])
out = Path("run")
with runlog.RunLog([loggers.RunFacts("test", out)], 0, 3, names=["wandb"]) as log:
    for step in (1, 2, 3):
        log.step(step, [{"loss": 1 / step}])
"""
ASK = """
import sys
from gkd_scale import console
from gkd_scale.engine import loggers
sys.exit(console.run(lambda: loggers.require(["wandb"])))
"""


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without any of wandb's settings, nor this process's connection to it."""
    for name in [each for each in os.environ if each.lstrip("_").startswith("WANDB")]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-settings"))


def test_without_a_key_it_is_one_line_and_no_question(tmp_path: Path) -> None:
    result = conftest.run([sys.executable, "-c", ASK], tmp_path)
    assert result.code == 2 and "wandb has no API key" in result.text and "WANDB_MODE=offline" in result.text
    assert result.text.count("error:") == 1 and "Traceback" not in result.text


def test_a_server_that_does_not_answer_makes_it_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    result = conftest.run([sys.executable, "-c", LOG], tmp_path)
    assert result.code == 0, result.text
    assert "kept offline" in result.text and "run/wandb/offline-run" in result.text
    assert list(stores.wandb(tmp_path / "run")[0]) == [1, 2, 3]
