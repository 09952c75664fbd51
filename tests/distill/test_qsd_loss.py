"""QsdLoss: L_feat for anybody's training loop."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gkd_scale import QsdHead, QsdLoss


def test_it_is_the_squared_error_of_the_head() -> None:
    torch.manual_seed(0)
    loss, student, teacher = QsdLoss(6, 8), torch.randn(2, 5, 6), torch.randn(2, 5, 8)
    head: QsdHead = loss.head
    expected = ((head.attention(student, teacher) @ head.proj_v(student) - teacher) ** 2).mean()
    torch.testing.assert_close(loss(student, teacher), expected)


def test_with_norm_scale_and_mean_of_a_token_do_not_matter() -> None:
    torch.manual_seed(0)
    loss, student, teacher = (
        QsdLoss(6, 8, norm=True, attend=False),
        torch.randn(2, 5, 6),
        torch.randn(2, 5, 8),
    )
    torch.testing.assert_close(loss(student, teacher), loss(student, 3 * teacher + 1), rtol=1e-4, atol=1e-4)
    plain = F.mse_loss(loss.head.proj_v(student), F.layer_norm(teacher, (8,)))
    torch.testing.assert_close(loss(student, teacher), plain)


def test_gradients_reach_student_and_head_and_not_the_teacher() -> None:
    loss = QsdLoss(6, 8)
    student, teacher = torch.randn(1, 4, 6, requires_grad=True), torch.randn(1, 4, 8, requires_grad=True)
    loss(student, teacher).backward()
    assert student.grad is not None and teacher.grad is None
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_tokens_of_other_places_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same images and places"):
        QsdLoss(6, 8)(torch.randn(1, 4, 6), torch.randn(1, 5, 8))
