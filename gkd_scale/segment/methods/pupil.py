"""A segmenter with a method beside it: what the loop trains; only the segmenter is validated and exported."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gkd_scale.models.layers import batch_norms, kept_statistics
from gkd_scale.models.look import Look, look
from gkd_scale.segment.augment import SegBatch
from gkd_scale.segment.methods.base import Guide, Method, Scene
from gkd_scale.segment.segmenter import Segmenter


class Pupil(nn.Module):
    """``forward(batch)``: ``loss`` = task_weight · ``loss_task`` + the method's terms, also named."""

    def __init__(self, segmenter: Segmenter, method: Method, guide: Guide) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.method = method
        self.guide = guide

    def forward(self, batch: SegBatch) -> dict[str, Tensor]:
        """The named losses of a batch from anywhere; the teacher sees the very same pixels."""
        segmenter = self.segmenter
        device = next(segmenter.parameters()).device
        pixels, labels = (each.to(device, non_blocking=True) for each in batch)
        seen = look(segmenter.backbone, pixels, self.method.levels)
        task = segmenter.head.losses(seen.maps, labels)["loss"]
        scene = Scene(
            pixels,
            labels,
            seen,
            self.guide,
            head=lambda size: segmenter.head.class_logits(seen.maps, size),
            again=lambda change: self._again(pixels, change),
        )
        terms = self.method(scene)
        total = self.method.task_weight * task + sum(terms.values())
        return {"loss": total, "loss_task": task, **terms}

    def _again(self, pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Look:
        """Another pass; BatchNorm's running statistics, which serve whole images, leave it out."""
        backbone = self.segmenter.backbone
        with kept_statistics(batch_norms(backbone)):
            return look(backbone, pixels, change=change)


def segmenter_in(module: nn.Module) -> nn.Module:
    """The segmenter of what the loop trains."""
    return module.segmenter if isinstance(module, Pupil) else module
