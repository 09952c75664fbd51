"""Tokens as colours."""

from __future__ import annotations

import numpy as np
import torch

from gkd_scale.report.components import Components


def test_colours_follow_the_components_and_not_the_order_of_tokens() -> None:
    tokens = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(8, 0, -1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    colours = Components.of(tokens).colours(tokens)
    assert colours.shape == (50, 3) and colours.min() == 0 and colours.max() == 255
    again = Components.of(tokens[order]).colours(tokens[order])
    np.testing.assert_allclose(again, colours[order.numpy()], atol=1)
    constant = torch.ones(4, 2)
    assert Components.of(constant).colours(constant).shape == (4, 3), "constant tokens, few channels"


def test_equal_tokens_have_equal_colours_in_one_basis() -> None:
    tokens = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    basis = Components.of(tokens)
    np.testing.assert_array_equal(basis.colours(tokens[7:9]), basis.colours(tokens)[7:9])
