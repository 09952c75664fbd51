"""BatchNorm over ranks equals BatchNorm over the whole batch on one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn

from gkd_scale.segment.heads.norm import BatchNorm
from tests import warm


def whole_batch() -> torch.Tensor:
    return torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100


def run(norm: nn.BatchNorm2d, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and statistics after one training step on a loss that depends on position."""
    x = x.clone().requires_grad_()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 4))
        norm.bias.copy_(torch.linspace(-1, 1, 4))
    out = norm(x)
    (out.square() * torch.linspace(0, 1, 5)).sum().backward()
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    assert norm.running_mean is not None and norm.running_var is not None
    return {
        "out": out.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


def test_one_rank_equals_torch() -> None:
    ours, theirs = run(BatchNorm(4), whole_batch()), run(nn.BatchNorm2d(4), whole_batch())
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=2e-4, rtol=1e-4, msg=key)


def test_eval_mode_equals_torch() -> None:
    ours, theirs = BatchNorm(4).eval(), nn.BatchNorm2d(4).eval()
    assert torch.equal(ours(whole_batch()), theirs(whole_batch()))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    rows = slice(0, 4) if rank == 0 else slice(4, 6)
    torch.save(run(BatchNorm(4), whole_batch()[rows]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_ranks_of_unequal_batches_equal_one(tmp_path: Path) -> None:
    warm.spawn(_rank, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    expected = run(nn.BatchNorm2d(4), whole_batch())
    for key in ("out", "x"):
        torch.testing.assert_close(
            torch.cat([part[key] for part in parts]), expected[key], atol=2e-4, rtol=1e-4, msg=key
        )
    for key in ("weight", "bias"):
        torch.testing.assert_close(
            parts[0][key] + parts[1][key], expected[key], atol=2e-3, rtol=1e-4, msg=key
        )
    for key in ("mean", "var"):
        assert torch.equal(parts[0][key], parts[1][key])
        torch.testing.assert_close(parts[0][key], expected[key])
