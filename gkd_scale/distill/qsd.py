"""Query-based soft distillation (QSD), as published in "Generalizable Knowledge Distillation from Vision
Foundation Models for Semantic Segmentation" (CVPR 2026, arXiv 2603.02554).

Shapes: B images, M query tokens, N key tokens, Cs student width, Ct teacher width. The student asks
(queries), the teacher is asked (keys), and what is gathered are the student's own projected tokens
(values): teacher values in the output would make the loss trivially zero.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F


class QsdHead(nn.Module):
    """v' = softmax(φ(v_s) v_tᵀ) ψ(v_s), with φ and ψ each LayerNorm(Cs) then Linear(Cs, Ct).

    One attention head; the logits are unscaled as published, or divided by √Ct with ``scaled``.
    ``zero_query`` starts φ's Linear at zero, so that attention starts uniform.
    Without ``attend``, v' = ψ(v_s): plain feature MSE, the ablation of the paper.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        scaled: bool = False,
        zero_query: bool = False,
        attend: bool = True,
    ) -> None:
        super().__init__()
        self.attend = attend
        if attend:
            self.proj_q = nn.Sequential(nn.LayerNorm(student_dim), nn.Linear(student_dim, teacher_dim))
        self.proj_v = nn.Sequential(nn.LayerNorm(student_dim), nn.Linear(student_dim, teacher_dim))
        self.scale = 1 / math.sqrt(teacher_dim) if scaled else 1.0
        if attend and zero_query:
            linear = self.proj_q[1]
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``student`` (B, N, Cs) and ``teacher`` (B, N, Ct) to the student's soft tokens (B, N, Ct)."""
        values: Tensor = self.proj_v(student)
        if not self.attend:
            return values
        queries = self.proj_q(student)
        out: Tensor = F.scaled_dot_product_attention(
            queries, teacher.to(queries.dtype), values, scale=self.scale
        )
        return out

    def attention(self, student: Tensor, teacher: Tensor) -> Tensor:
        """softmax(φ(v_s) v_tᵀ), the weights by which :meth:`forward` gathers: (B, N, N), rows sum to 1.

        Only if the head attends.
        """
        assert self.attend, "plain MSE gathers nothing"
        queries: Tensor = self.proj_q(student)
        return (self.scale * queries @ teacher.to(queries.dtype).mT).softmax(-1)


class QsdLoss(nn.Module):
    """mean (v' - v_t)² with v' of :class:`QsdHead`: the paper's L_feat in anybody's training loop.

    Its parameters are the head's: give them to the optimizer beside the student's. ``student_dim`` Cs and
    ``teacher_dim`` Ct are token widths; the other arguments are those of :class:`QsdHead`. Without
    ``norm`` the teacher's tokens are compared as they are, as published; with it each is first brought to
    mean 0 and variance 1 over its channels, which tokens of foundation models need.

    ::

        loss = gkd_scale.QsdLoss(192, 768, norm=True)
        optimizer = torch.optim.AdamW([*student.parameters(), *loss.parameters()], lr=1e-3)
        loss(student_tokens, teacher_tokens).backward()
    """

    def __init__(self, student_dim: int, teacher_dim: int, *, norm: bool = False, **head: bool) -> None:
        super().__init__()
        self.head = QsdHead(student_dim, teacher_dim, **head)
        self.norm = norm

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """``student`` (B, N, Cs) and ``teacher`` (B, N, Ct) of the same places to a scalar, or ValueError."""
        if student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f"student tokens {tuple(student.shape)} and teacher tokens {tuple(teacher.shape)} are not of "
                "the same images and places: resample one to the other's grid"
            )
        target = teacher.detach().float()
        if self.norm:
            target = F.layer_norm(target, target.shape[-1:])
        return F.mse_loss(self.head(student, target).float(), target)
