"""Vanilla KD: mean squared error of projected features, as in FitNets (Romero et al., "FitNets: Hints for
Thin Deep Nets", ICLR 2015). Which layer and weight the compared paper took is not published [inferred].

    L = λ · MSE(W f_s, f_t) over all tokens and channels, W linear.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.models.backbone import Backbone
from gkd_scale.segment.methods.base import FeatureMethod, MethodInputs, MethodTeacher


class VanillaKd(FeatureMethod):
    """``weight`` λ: 1 to 10 for tokens out of a LayerNorm."""

    def __init__(self, backbone: Backbone, teacher: MethodTeacher, *, weight: float = 1.0) -> None:
        super().__init__(backbone, teacher)
        self.weight = weight
        self.project = nn.Linear(self.student_dim, self.teacher_dim)

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        projection = self.project(self.student_tokens(inputs.student))
        return {"loss_kd": self.weight * F.mse_loss(projection.float(), inputs.teacher_features.patches)}
