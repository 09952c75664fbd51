"""One forward pass of a backbone: maps for a head, and features to compare with a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from gkd_scale.models import families
from gkd_scale.models.backbone import Backbone
from gkd_scale.models.tokens import to_map
from gkd_scale.types import Features, Grid


@dataclass(frozen=True)
class BackboneOutputs:
    """What a backbone computes for a batch.

    ``maps``: the head's pyramid, as ``Backbone.forward`` returns it. ``features`` on ``grid``: its last
    level, of a plain transformer after the final norm. ``levels``: maps (B, C_i, h_i, w_i) of the requested
    levels, as they leave their block or stage.
    """

    maps: list[Tensor]
    features: Features
    grid: Grid
    levels: list[Tensor]


def backbone_outputs(
    backbone: Backbone,
    pixels: Tensor,
    levels: Sequence[int] = (),
    change: Callable[[Tensor], Tensor] = lambda pixels: pixels,
) -> BackboneOutputs:
    """One pass over ``pixels`` (B, 3, H, W) 0..255; ``change`` alters the normalised pixels."""
    x = families.as_input(backbone.net, change(backbone.normalize(pixels)))
    indices = sorted({*backbone.indices, *levels})
    net: Any = backbone.net
    run = partial(net.forward_intermediates, x, indices=indices, intermediates_only=True)
    if not backbone.is_tokens:
        states = dict(zip(indices, run(), strict=True))
        stages = [states[index] for index in backbone.indices]
        features, grid = families.flatten_map(nn.Identity(), stages[-1])
        return BackboneOutputs(backbone.pyramid(stages), features, grid, [states[index] for index in levels])
    grid = families.token_grid(net, x)
    blocks = run(return_prefix_tokens=True, output_fmt="NLC")
    pairs = dict(zip(indices, (b if isinstance(b, tuple) else (b, None) for b in blocks), strict=True))

    def norm(tokens: Tensor) -> Tensor:
        return families.normalise(net, net.norm(tokens))

    maps = backbone.pyramid([to_map(norm(pairs[index][0]), grid) for index in backbone.indices])
    patches, prefix = pairs[backbone.indices[-1]]
    patches = norm(patches)
    cls = norm(prefix[:, 0]) if prefix is not None and families.has_cls(net) else patches.mean(1)
    return BackboneOutputs(
        maps, Features(cls, patches), grid, [to_map(pairs[index][0], grid) for index in levels]
    )
