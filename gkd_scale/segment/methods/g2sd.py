"""The specific stage of G2SD (Huang et al., "Generic-to-Specific Distillation of Masked Autoencoders", CVPR
2023): the task's loss, and cross-entropy with the classes that the teacher's own head chooses.

    L = ½ · L_task + ½ · CE(y_s, argmax y_t), the mean over pixels whose label is not ignored.

The generic stage comes before: ``stage1.py --objective g2sd``; its run is this one's ``--backbone``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gkd_scale.models.backbone import Backbone
from gkd_scale.segment.heads.base import cross_entropy
from gkd_scale.segment.methods.base import Method, MethodInputs, MethodTeacher
from gkd_scale.types import IGNORE


class G2sd(Method):
    """``weight`` of the teacher's labels; the task's is 1 - ``weight``. Needs a teacher's head."""

    def __init__(self, backbone: Backbone, teacher: MethodTeacher, *, weight: float = 0.5) -> None:  # noqa: ARG002
        super().__init__()
        teacher.require_head()
        self.weight = weight
        self.task_weight = 1 - weight

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        student, teacher = inputs.logits
        size = (student.shape[2], student.shape[3])
        valid = F.interpolate(inputs.labels[:, None].float(), size=size, mode="nearest-exact")[:, 0] != IGNORE
        hard = torch.where(valid, teacher.argmax(1), IGNORE)
        return {"loss_hard": self.weight * cross_entropy(student, hard)}
