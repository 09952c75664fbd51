"""What is exported: a run's backbone, or its segmenter, as one module from pixels to named tensors.

A format is a module with two functions and a constant::

    write(subject, folder, how) -> None        its files, into ``folder``
    load(folder, subject, shapes) -> Forward   them, as the format's own library loads and runs them
    FIXED                                      whether it is a graph, which may be tied to one size

Pixels are float32 RGB (B, 3, H, W) in 0..1 everywhere; mean and standard deviation are inside the module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.commands import shell
from gkd_scale.documents import read_yaml
from gkd_scale.engine import run as runs
from gkd_scale.errors import ConfigError, RunError
from gkd_scale.models import backbone as backbones
from gkd_scale.models import families
from gkd_scale.models.backbone import Backbone, load_backbone
from gkd_scale.report.runs import Run, read_runs
from gkd_scale.segment import export as segmenters
from gkd_scale.segment import inference
from gkd_scale.segment.heads.registry import HEADS
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import Features, Size

Forward = Callable[[Tensor], dict[str, Tensor]]
"""Pixels (B, 3, H, W) float32 0..1 to named outputs, float32 on the CPU."""

INPUT = "pixels"
_DEFAULT_SIZE = (224, 224)


class Shapes(Enum):
    """Which inputs an export takes."""

    ANY = "any batch, of any size"
    BATCH = "any batch, of one size"
    ONE = "one at a time, of one size"


@dataclass(frozen=True)
class How:
    """How to write: which inputs, numbers of which width, and pixels (N, 3, H, W) to calibrate them on."""

    shapes: Shapes
    dtype: str
    calibration: Tensor


class BackboneGraph(nn.Module):
    """Pixels to ``patches`` (B, N, C), row-major, after the final norm, and ``cls`` (B, C) if it has one."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.net = backbone.net
        _register(self, backbone)
        self.has_cls = families.has_cls(backbone.net)
        self.outputs: tuple[str, ...] = ("patches", "cls") if self.has_cls else ("patches",)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = families.as_input(self.net, (pixels - self.mean) / self.std)
        features, _ = families.dense(self.net, x)
        return (features.patches, features.cls) if self.has_cls else (features.patches,)


class SegmenterGraph(nn.Module):
    """Pixels to ``logits`` (B, K, H, W) at their size; the border that makes whole patches is added here."""

    mean: Tensor
    std: Tensor
    fill: Tensor

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.backbone = segmenter.backbone
        self.head = segmenter.head
        self.stride = segmenter.stride
        _register(self, segmenter.backbone)
        fill = torch.tensor(segmenter.fill, dtype=torch.float32).view(3, 1, 1) / 255
        self.register_buffer("fill", fill, persistent=False)
        self.outputs: tuple[str, ...] = ("logits",)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        height, width = pixels.shape[-2:]
        rows, columns = -height % self.stride, -width % self.stride
        symbolic = not (isinstance(rows, int) and isinstance(columns, int))  # of any size: always padded
        if symbolic or rows or columns:
            pixels = F.pad(pixels - self.fill, (0, columns, 0, rows)) + self.fill
        maps = self.backbone.maps((pixels - self.mean) / self.std)
        logits = self.head(maps, (pixels.shape[-2], pixels.shape[-1]))
        return (logits[..., :height, :width].float(),)


def _register(module: nn.Module, backbone: Backbone) -> None:
    for name in ("mean", "std"):
        value = torch.tensor(getattr(backbone, name)).view(3, 1, 1)
        module.register_buffer(name, value, persistent=False)


@dataclass(frozen=True)
class Subject:
    """A run to be exported. ``segmenter`` and ``card`` are those of a stage-2 run; ``head``: its head is
    exported too; ``history`` is the record of its training, None if its folder has none."""

    run: Path
    backbone: Backbone
    image_size: Size
    segmenter: Segmenter | None = None
    card: segmenters.Card | None = None
    head: bool = False
    history: Run | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def graph(self) -> BackboneGraph | SegmenterGraph:
        """The module that is exported, in eval mode."""
        if self.head:
            assert self.segmenter is not None
            graph: BackboneGraph | SegmenterGraph = SegmenterGraph(self.segmenter)
        else:
            graph = BackboneGraph(self.backbone)
        return graph.eval().requires_grad_(False)

    def shapes(self) -> Sequence[Shapes]:
        """What to try, the best first."""
        return [shapes for shapes in Shapes if shapes is not Shapes.ANY or not self.why_fixed()]

    def why_fixed(self) -> str:
        """Why only one size works; the empty string if any should."""
        net = self.backbone.net
        if hasattr(net, "patch_embed") and not families.is_tokens(net):
            return f"the windows of {self.backbone.name} are laid out for one size"
        if self.head and self.card is not None and not HEADS[self.card.head].any_size:
            return f"the {self.card.head} head's positions are laid out for one size"
        return ""

    @torch.no_grad()
    def reference(self, pixels: Tensor) -> dict[str, Tensor]:
        """What the run itself gives in PyTorch for pixels (B, 3, H, W) uint8, as it is evaluated."""
        if self.head:
            assert self.segmenter is not None
            return {"logits": inference.logits(self.segmenter, pixels)}
        x = families.as_input(self.backbone.net, self.backbone.normalize(pixels))
        features, _ = families.dense(self.backbone.net, x)
        return tokens(features, has_cls=families.has_cls(self.backbone.net))


def tokens(features: Features, *, has_cls: bool) -> dict[str, Tensor]:
    """The named outputs of a backbone."""
    return {"patches": features.patches, **({"cls": features.cls} if has_cls else {})}


def open_subject(run: Path, *, head: bool, image_size: Size | None = None) -> Subject:
    """The backbone (``head``: the segmenter) of a finished run; RunError, ModelError or ConfigError."""
    _require_finished(run)
    is_stage2 = (run / segmenters.CARD_FILE).is_file()
    if head and not is_stage2:
        raise RunError(
            f"{run} is a stage-1 run: it has a backbone and no head (no {segmenters.CARD_FILE})",
            "leave --with-head out, or train a head: "
            + shell("deepspeed", "launchers/stage2.py", "--backbone", run, "--out", f"{run}-stage2"),
        )
    segmenter, card = segmenters.load_segmenter(run) if is_stage2 else (None, None)
    backbone = segmenter.backbone if segmenter else load_backbone(run, None)
    backbone.eval().requires_grad_(False)
    facts = read_yaml(run / backbones.CARD_FILE)
    size = image_size or _training_size(facts, card, backbone)
    _require_whole_patches(backbone, size)
    history = read_runs([run])[0] if (run / runs.RECORD).is_file() and (run / runs.CONFIG).is_file() else None
    return Subject(run, backbone, size, segmenter, card, head, history, facts)


def _require_finished(run: Path) -> None:
    """RunError, which says what ``run`` is, unless it holds a finished run of one backbone."""
    if not run.is_dir():
        raise RunError(f"{run} does not exist", "give the folder of a finished run; was it moved?")
    missing = [name for name in (backbones.CARD_FILE, backbones.WEIGHTS_FILE) if not (run / name).is_file()]
    unfinished = (run / runs.BEGUN).is_file() and runs.read(run) is None
    if not missing and not unfinished:
        return
    if unfinished:
        raise RunError(
            f"{run} holds a run that is not finished (no {runs.RECORD})", "run its command again: it goes on"
        )
    below = sorted(path.parent for path in run.glob(f"*/{backbones.CARD_FILE}"))
    if below:
        raise RunError(f"{run} holds several students", f"give one of them: {', '.join(map(str, below))}")
    raise RunError(
        f"{run} holds no finished run (no {' and no '.join(missing)})",
        "give the --out folder of a stage 1 or 2",
    )


def _training_size(facts: dict[str, Any], card: segmenters.Card | None, backbone: Backbone) -> Size:
    """The image size (H, W) of the last training, else the architecture's own."""
    size = card.image_size if card is not None else facts.get("image_size")
    if size is None:
        size = backbone.spec.args.get("img_size") or _DEFAULT_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _require_whole_patches(backbone: Backbone, size: Size) -> None:
    if any(side % backbone.stride for side in size):
        near = "x".join(str(max(1, round(side / backbone.stride)) * backbone.stride) for side in size)
        raise ConfigError(
            f"{size[0]}x{size[1]} is not made of multiples of {backbone.stride}, {backbone.name}'s stride",
            f"use --image-size {near}",
        )
