"""Masks: how many, how spread, and the same for every world size."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gkd_scale.models.masking import MaskPixels, MaskToken, masked_positions, random_mask


@given(
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.integers(0, 99),
    st.integers(1, 300),
    st.floats(0, 1),
)
def test_a_mask_has_exactly_its_share_and_depends_on_epoch_and_sample(
    sid: str, epoch: int, tokens: int, ratio: float
) -> None:
    mask = random_mask(sid, epoch, 0, tokens, ratio)
    assert mask.shape == (tokens,)
    assert int(mask.sum()) == round(ratio * tokens)
    assert torch.equal(mask, random_mask(sid, epoch, 0, tokens, ratio))


def test_masks_differ_between_epochs_samples_and_seeds() -> None:
    masks = [
        random_mask(sid, epoch, seed, 64, 0.5) for sid in ("a", "b") for epoch in (0, 1) for seed in (0, 1)
    ]
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks)


@given(st.integers(1, 6), st.integers(1, 8), st.floats(0, 1))
def test_which_images_are_masked_does_not_depend_on_the_world_size(
    world: int, micro: int, share: float
) -> None:
    positions = list(range(world * micro))
    whole = {positions[i] for i in masked_positions(positions, share)}
    parts: set[int] = set()
    for rank in range(world):
        mine = positions[rank * micro : (rank + 1) * micro]
        parts |= {mine[i] for i in masked_positions(mine, share)}
    assert parts == whole
    assert abs(len(whole) - share * len(positions)) <= 1


def test_half_of_the_batch_is_masked_by_default() -> None:
    assert masked_positions(range(8), 0.5) == [1, 3, 5, 7]


def test_the_mask_token_replaces_masked_embeddings_only() -> None:
    embed = nn.Linear(4, 3)
    masker = MaskToken(embed, 3)
    x = torch.randn(2, 5, 4)
    plain = embed(x)
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    masker.set(mask)
    masked = embed(x)
    assert torch.equal(masked[~mask], plain[~mask])
    assert torch.equal(masked[mask], masker.token.expand(2, 3))


def test_the_mask_colour_replaces_whole_blocks() -> None:
    masker = MaskPixels()
    with torch.no_grad():
        masker.token.copy_(torch.tensor([7.0, 8.0, 9.0]))
    pixels = torch.randn(1, 3, 8, 12)
    mask = torch.tensor([[False, True, False, False, False, False]])
    out = masker(pixels, mask, (2, 3))
    assert torch.allclose(out[0, :, :4, 4:8], torch.tensor([7.0, 8.0, 9.0]).view(3, 1, 1).expand(3, 4, 4))
    difference = (out != pixels).any(1)[0]
    assert int(difference.sum()) == 16
