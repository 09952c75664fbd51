"""Students: any timm vision transformer or convolutional network, with masking, as Features.

The network keeps timm's module and its keys; what we add (the mask token) lives beside it and is not
exported. Position embeddings keep the architecture's own grid and are resampled on the fly for other
image sizes, so that the exported weights load into plain ``timm.create_model``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gkd_scale.models import backbone, teachers
from gkd_scale.models.masking import MaskPixels, MaskToken
from gkd_scale.models.spec import ModelSpec
from gkd_scale.types import Features, Grid, Size


class Student(nn.Module):
    """A timm network that gives Features and can be masked.

    ``grid`` is the grid of its tokens, ``mask_grid`` the grid that masks are drawn on, both for
    ``image_size``; ``dim`` is the width Cs.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec, image_size: Size, teacher_grid: Grid) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.normalize = teachers.Normalize(spec.mean, spec.std)
        self.is_tokens = teachers.is_tokens(net)
        self.dim: int = int(net.num_features)  # type: ignore[arg-type]
        self.grid: Grid
        if self.is_tokens:
            rows, columns = teachers.patch_size(net)
            self.grid = self.mask_grid = (image_size[0] // rows, image_size[1] // columns)
            self.mask: MaskToken | MaskPixels = MaskToken(net.patch_embed, self.dim)  # type: ignore[arg-type]
        else:
            self.grid, self.dim = backbone.measure(net, image_size)
            self.mask_grid = teacher_grid
            self.mask = MaskPixels()

    @property
    def mask_tokens(self) -> int:
        """How many patches a mask is drawn over."""
        return self.mask_grid[0] * self.mask_grid[1]

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Features:
        """``pixels`` (B, 3, H, W) 0..255 and ``mask`` (B, mask_tokens) bool to features on ``grid``."""
        x = self.normalize(pixels).to(teachers.dtype_of(self.net))
        net: Any = self.net
        if isinstance(self.mask, MaskToken):
            self.mask.set(mask)
            return teachers.split_tokens(net, net.forward_features(x))
        if mask is not None:
            x = self.mask(x, mask, self.mask_grid)
        return teachers.flatten_map(net, net.forward_features(x))[0]


def load_student(
    name: str,
    image_size: Size,
    teacher_grid: Grid,
    *,
    weights: str | None = None,
    args: dict[str, Any] | None = None,
    drop_path: float = 0.0,
) -> Student:
    """A student from scratch, from ``weights`` (FILE, RUN folder or 'pretrained'); raises ModelError."""
    spec, net = backbone.build(name, args, weights, **({"drop_path_rate": drop_path} if drop_path else {}))
    teachers.check_divisible(net, image_size, name)
    return Student(net, spec, image_size, teacher_grid)
