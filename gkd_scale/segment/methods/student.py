"""A segmenter with a method beside it: the loop trains both, and validates and exports the segmenter."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gkd_scale.engine.batch_norm import batch_norms, kept_statistics
from gkd_scale.models.outputs import BackboneOutputs, backbone_outputs
from gkd_scale.segment.augment import SegBatch
from gkd_scale.segment.methods.base import Method, MethodInputs, MethodTeacher
from gkd_scale.segment.segmenter import Segmenter


class StudentWithMethod(nn.Module):
    """``forward(batch)``: ``loss`` = task_weight · ``loss_task`` + the method's terms, and each of them."""

    def __init__(self, segmenter: Segmenter, method: Method, teacher: MethodTeacher) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.method = method
        self.teacher = teacher

    def forward(self, batch: SegBatch) -> dict[str, Tensor]:
        """The named losses of a batch on any device; the teacher sees the same pixels as the student."""
        segmenter = self.segmenter
        device = next(segmenter.parameters()).device
        pixels, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        outputs = backbone_outputs(segmenter.backbone, pixels, self.method.levels)
        task = segmenter.head.losses(outputs.maps, labels)["loss"]
        inputs = MethodInputs(
            pixels,
            labels,
            outputs,
            self.teacher,
            head=lambda size: segmenter.head.class_logits(outputs.maps, size),
            again=lambda change: self._again(pixels, change),
        )
        terms = self.method(inputs)
        total = self.method.task_weight * task + sum(terms.values())
        return {"loss": total, "loss_task": task, **terms}

    def _again(self, pixels: Tensor, change: Callable[[Tensor], Tensor]) -> BackboneOutputs:
        """Another pass; BatchNorm's running statistics stay as they are: those of unchanged images."""
        backbone = self.segmenter.backbone
        with kept_statistics(batch_norms(backbone)):
            return backbone_outputs(backbone, pixels, change=change)


def segmenter_in(module: nn.Module) -> nn.Module:
    """The segmenter inside the module that the loop trains."""
    return module.segmenter if isinstance(module, StudentWithMethod) else module
