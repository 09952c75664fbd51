"""The moving average: its decay, its application, its way through a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from gkd_scale.engine.ema import Ema


def test_it_follows_the_formula() -> None:
    net = nn.Linear(3, 2)
    ema = Ema(net, 0.99)
    expected = net.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3))
        ema.update(step)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    torch.testing.assert_close(ema.full()["weight"], expected, atol=1e-4, rtol=1e-4)


def test_applied_lasts_as_long_as_its_block() -> None:
    net = nn.Linear(3, 2)
    ema = Ema(net, 0.5)
    with torch.no_grad():
        net.weight.zero_()
    with ema.apply():
        assert net.weight.abs().sum() > 0
    assert net.weight.abs().sum() == 0


def test_frozen_parameters_are_left_out_and_load_restores() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    ema = Ema(net, 0.9)
    average = {name: value.clone() for name, value in ema.full().items()}
    assert set(average) == {"1.weight", "1.bias"}
    with torch.no_grad():
        net[1].weight.add_(1)
    ema.update(1)
    ema.load(average)
    assert all(torch.equal(ema.full()[name], value) for name, value in average.items())
