from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from gkd_scale.memory import collector_paused, keep_freed

# Page faults of 20 blocks of 32 MB, each filled and freed before the next, after ten that do not count.
FAULTS = """
import resource, sys
from gkd_scale.memory import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed()
import torch
for _ in range(10):
    torch.ones(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    result = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    return int(result.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_memory_freed_by_one_batch_serves_the_next() -> None:
    assert page_faults("kept") < page_faults("given back") / 100


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed()


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_rests_and_is_then_as_before(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    was = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        for freeze in (False, True):
            with pytest.raises(KeyError), collector_paused(freeze=freeze):
                assert not gc.isenabled()
                raise KeyError
            assert gc.isenabled() == on
    finally:
        (gc.enable if was else gc.disable)()
    assert frozen == [False], "while nothing is collected"
