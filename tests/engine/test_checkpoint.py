"""Checkpoints on disk: which stay, what a kill and a full disk leave."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gkd_scale.engine import checkpoint
from gkd_scale.engine.runtime import Runtime

ALONE = Runtime(0, 1, torch.device("cpu"))


def engine(seed: int) -> Any:
    """What checkpoints see of DeepSpeed without ZeRO: a module and its optimizer, after a step."""
    torch.manual_seed(seed)
    module = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(4, 64)).square().mean().backward()
    optimizer.step()
    return SimpleNamespace(module=module, optimizer=optimizer)


def save(folder: Path, step: int, seed: int = 0) -> None:
    checkpoint.write(folder, checkpoint.take(step, engine(seed), None, ALONE, {"seed": 0}))


def test_the_newest_and_every_mth_stay(tmp_path: Path) -> None:
    for step in range(10, 100, 10):
        save(tmp_path, step)
        checkpoint.prune(tmp_path, keep=2, keep_every=30)
    assert checkpoint.steps(tmp_path) == [30, 60, 80, 90]
    checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.steps(tmp_path) == [90]


def test_what_is_saved_is_restored(tmp_path: Path) -> None:
    save(tmp_path, 3, seed=1)
    other, same = engine(2), engine(1)
    checkpoint.load(tmp_path, 3, other, None, {"seed": 0})
    for name, value in same.module.state_dict().items():
        assert torch.equal(other.module.state_dict()[name], value)
    for mine, theirs in zip(same.module.parameters(), other.module.parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(same.optimizer.state[mine][key], other.optimizer.state[theirs][key])


def test_a_pass_goes_on_from_the_newest_step_that_all_have(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert checkpoint.newest([one, two]) == 0
    for step in (5, 10):
        save(one, step)
    save(two, 5)
    assert checkpoint.newest([one, two]) == 5
    assert checkpoint.newest([one]) == 10


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save(tmp_path, 5)
    part = tmp_path / "step-00000010.safetensors.part"
    part.write_bytes(checkpoint.path(tmp_path, 5).read_bytes()[:100])
    assert checkpoint.newest([tmp_path]) == 5
    checkpoint.remove_torn([tmp_path])
    assert not part.exists()
    checkpoint.load(tmp_path, 5, engine(1), None, {"seed": 0})


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow above ``size`` bytes: as a full disk or quota does, writing raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_raises_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save(tmp_path, 5)
    before = checkpoint.path(tmp_path, 5).read_bytes()
    with disk_of(1000), pytest.raises(OSError):
        save(tmp_path, 10)
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000005.safetensors"]
    assert checkpoint.path(tmp_path, 5).read_bytes() == before
    save(tmp_path, 10)
    assert checkpoint.steps(tmp_path) == [5, 10]
