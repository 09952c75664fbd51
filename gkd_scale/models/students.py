"""Students: any timm network of the families in ``families.py``, with masking, as Features.

The network keeps timm's module and its keys; what we add (the mask token) lives beside it and is not
exported. Position embeddings and windows keep the architecture's own size and are resampled on the fly for
other image sizes, so that the exported weights load into plain ``timm.create_model``.

A student is deterministic except for ``drop_path`` and BatchNorm. With drop-path, the masked pass shares the
draw of the unmasked half instead of making a second one; with BatchNorm, its statistics are those of the
masked images alone (see ``distill/objectives/qsd.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale.errors import ModelError
from gkd_scale.models import backbone, families, teachers
from gkd_scale.models.masking import MaskPixels, MaskToken
from gkd_scale.models.spec import ModelSpec
from gkd_scale.types import Features, Grid, Size

MAX_RATIO = 4
"""The largest ratio, on a side, between a student's grid and the teacher's."""


class Student(nn.Module):
    """A timm network that gives Features and can be masked.

    ``grid`` is the grid of its tokens and ``dim`` their width Cs; masks are drawn on ``mask_grid``, which is
    ``grid`` if patch embeddings are masked, else the teacher's.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec, grid: Grid, dim: int, teacher_grid: Grid) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.normalize = teachers.Normalize(spec.mean, spec.std)
        self.grid, self.dim = grid, dim
        self.mask: MaskToken | MaskPixels
        if families.is_tokens(net):
            self.mask, self.mask_grid = MaskToken(net.patch_embed, dim), grid  # type: ignore[arg-type]
        else:
            self.mask, self.mask_grid = MaskPixels(), teacher_grid

    @property
    def mask_tokens(self) -> int:
        """How many patches a mask is drawn over."""
        return self.mask_grid[0] * self.mask_grid[1]

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Features:
        """``pixels`` (B, 3, H, W) 0..255 and ``mask`` (B, mask_tokens) bool to features on ``grid``."""
        x = families.as_input(self.net, self.normalize(pixels))
        if isinstance(self.mask, MaskToken):
            self.mask.set(mask)
            try:
                return families.dense(self.net, x)[0]
            finally:
                self.mask.set(None)
        if mask is not None:
            x = self.mask(x, mask, self.mask_grid)
        return families.dense(self.net, x)[0]

    def with_levels(self, pixels: Tensor) -> tuple[Features, list[Tensor]]:
        """As ``forward`` without a mask, and maps (B, C_i, h_i, w_i) of the levels before the last that a
        segmentation head reads."""
        return families.dense_and_levels(self.net, families.as_input(self.net, self.normalize(pixels)))

    def level_widths(self) -> list[int]:
        """The channels C_i of those maps."""
        return families.widths(self.net, families.ladder_levels(self.net))


def load_student(
    name: str,
    image_size: Size,
    teacher_grid: Grid,
    *,
    weights: str | None = None,
    args: dict[str, Any] | None = None,
    drop_path: float = 0.0,
    resize: str = "pi",
) -> Student:
    """A student from scratch, from ``weights`` (FILE, RUN folder or 'pretrained').

    ``resize`` says how a patch embedding gets another patch size (``weights.RESIZES``). Parameters that
    the features do not depend on are frozen. Raises ModelError, also for a student whose tokens cannot be
    resampled to the teacher's sensibly.
    """
    spec, net = backbone.build(name, args, weights, drop_path=drop_path, resize=resize)
    teachers.check_divisible(net, image_size, name)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        twin = backbone.any_size(spec)
    grid, dim, idle = families.trial(twin, name, image_size)
    refuse_far(name, image_size, grid, teacher_grid)
    for key, parameter in net.named_parameters():
        parameter.requires_grad_(key not in idle)
    return Student(net, spec, grid, dim, teacher_grid)


def refuse_far(name: str, image_size: Size, grid: Grid, target: Grid) -> None:
    """ModelError if bilinear resampling from ``grid`` to ``target`` would invent or skip most tokens."""
    ratios = [max(mine / theirs, theirs / mine) for mine, theirs in zip(grid, target, strict=True)]
    if max(ratios) > MAX_RATIO:
        coarse = grid[0] * grid[1] < target[0] * target[1]
        raise ModelError(
            f"{name} gives {grid[0]}x{grid[1]} tokens for {image_size[0]}x{image_size[1]} images, "
            f"more than {MAX_RATIO} times {'coarser' if coarse else 'finer'} than the teacher's "
            f"{target[0]}x{target[1]}",
            f"choose a student with a {'smaller' if coarse else 'larger'} stride "
            "(gkd-scale students), or --student-args patch_size=P",
        )
