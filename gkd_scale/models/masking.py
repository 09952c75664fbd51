"""Masked views for the student: which patches are masked, and what replaces them.

Which patches is a pure function of (seed, epoch, sample), so masks are never stored; which images of
a global batch are masked depends on their place in it, so that it is the same for every world size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.errors import ModelError
from gkd_scale.randomness import generator
from gkd_scale.types import Grid


def masked_positions(positions: Sequence[int], probability: float) -> list[int]:
    """Indices into ``positions`` of the images that are masked: a fraction ``probability``, spread evenly.

    Position p of the global batch is masked if floor((p + 1)·probability) > floor(p·probability): with
    one half, every second image (the paper masks half of the batch).
    """
    return [i for i, p in enumerate(positions) if int((p + 1) * probability) > int(p * probability)]


def random_mask(sid: str, epoch: int, seed: int, tokens: int, ratio: float) -> Tensor:
    """(tokens,) bool, True where masked: exactly round(ratio·tokens) of them."""
    order = generator("mask", seed, epoch, sid).permutation(tokens)
    mask = np.zeros(tokens, dtype=np.bool_)
    mask[order[: round(ratio * tokens)]] = True
    return torch.from_numpy(mask)


class MaskToken(nn.Module):
    """Replaces masked patch embeddings by one learned token, before position embedding.

    It hooks the output of timm's ``patch_embed``, (B, N, C) or (B, h, w, C), so that the network itself
    stays timm's, key for key.
    """

    def __init__(self, patch_embed: nn.Module, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(dim))
        nn.init.normal_(self.token, std=0.02)
        self._mask: Tensor | None = None
        patch_embed.register_forward_hook(self._replace)

    def set(self, mask: Tensor | None) -> None:
        """The mask (B, N) of the forward passes that follow, or None."""
        self._mask = mask

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """(B, …, C) with masked positions replaced; ``mask`` (B, N)."""
        mask = mask.view(*embeddings.shape[:-1], 1)
        return torch.where(mask, self.token.to(embeddings.dtype), embeddings)

    def _replace(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        return None if self._mask is None else self(output, self._mask)


class VisibleOnly:
    """Lets a plain transformer see only some patches, as the encoder of a masked autoencoder.

    It hooks timm's ``patch_drop``, which comes after position embedding: (B, prefix + N, C) to
    (B, prefix + n, C). Raises ModelError for a network without one.
    """

    def __init__(self, net: nn.Module) -> None:
        drop = getattr(net, "patch_drop", None)
        if not isinstance(drop, nn.Identity):
            raise ModelError(
                f"{type(net).__name__} cannot leave patches out", "give a plain vision transformer of timm"
            )
        self._prefix = int(net.num_prefix_tokens)  # type: ignore[arg-type]
        self._keep: Tensor | None = None
        drop.register_forward_hook(self._select)

    def set(self, keep: Tensor | None) -> None:
        """The patches (B, n) int64 that the next forward passes see, or None for all."""
        self._keep = keep

    def _select(self, _module: nn.Module, _inputs: object, tokens: Tensor) -> Tensor | None:
        if self._keep is None:
            return None
        prefix, patches = tokens[:, : self._prefix], tokens[:, self._prefix :]
        index = self._keep[..., None].expand(-1, -1, patches.shape[2])
        return torch.cat([prefix, patches.gather(1, index)], 1)


class MaskPixels(nn.Module):
    """Replaces masked blocks of the (normalised) image by one learned colour; for convolutional students."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))

    def forward(self, pixels: Tensor, mask: Tensor, grid: Grid) -> Tensor:
        """``pixels`` (B, 3, H, W), ``mask`` (B, h·w) over ``grid`` (h, w)."""
        blocks = mask.view(-1, 1, *grid).to(pixels.dtype)
        blocks = F.interpolate(blocks, size=pixels.shape[-2:], mode="nearest")
        return pixels + blocks * (self.token.view(1, 3, 1, 1) - pixels)
