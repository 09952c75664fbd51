"""CWD: channel-wise distillation (Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction",
ICCV 2021, arXiv 2011.13256).

Every channel of a map is a distribution over space, and the student's should be the teacher's:

    L = λ · T²/(B C) · Σ_c KL( softmax_space(t_c / T) ‖ softmax_space(s_c / T) )

on logits if the teacher has a head (λ = 3), else on the last features after a 1x1 convolution (λ = 50).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.models.backbone import Backbone
from gkd_scale.segment.methods.base import FeatureMethod, Method, MethodInputs, MethodTeacher


class CwdLogits(Method):
    """CWD on logits."""

    def __init__(self, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        student, teacher = inputs.logits
        return {"loss_kd": self.weight * channel_divergence(student, teacher, self.temperature)}


class CwdFeatures(FeatureMethod):
    """CWD on features."""

    def __init__(
        self, backbone: Backbone, teacher: MethodTeacher, *, weight: float, temperature: float
    ) -> None:
        super().__init__(backbone, teacher)
        self.weight, self.temperature = weight, temperature
        self.align = nn.Conv2d(self.student_dim, self.teacher_dim, 1)

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        student = self.align(self.student_map(inputs.student))
        return {
            "loss_kd": self.weight * channel_divergence(student, self.teacher_map(inputs), self.temperature)
        }


def cwd(
    backbone: Backbone, teacher: MethodTeacher, *, weight: float | None = None, temperature: float = 4.0
) -> CwdLogits | CwdFeatures:
    """``weight`` λ (default: 3 on logits, 50 on features) and ``temperature`` T."""
    if teacher.has_head:
        return CwdLogits(weight=3.0 if weight is None else weight, temperature=temperature)
    return CwdFeatures(backbone, teacher, weight=50.0 if weight is None else weight, temperature=temperature)


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²/(B C) · Σ KL(teacher ‖ student) over the channels of maps (B, C, h, w), in float32."""
    log_s, log_t = (
        (maps.float().flatten(2) / temperature).log_softmax(2).flatten(0, 1) for maps in (student, teacher)
    )
    return temperature**2 * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
