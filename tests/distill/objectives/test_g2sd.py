"""G2SD's generic stage: which patches the student sees, the loss by hand, and what is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.g2sd import G2sdGeneric
from gkd_scale.errors import ModelError
from gkd_scale.models.masking import VisibleOnly, random_mask
from gkd_scale.models.students import load_student
from tests.conftest import TINY

from .test_qsd import batch, distiller, run


def generic() -> G2sdGeneric:
    torch.manual_seed(1)
    args = {**TINY, "patch_size": 8}
    return G2sdGeneric(
        load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=args), TeacherSpace(20, (2, 3))
    )


def test_the_encoder_sees_the_patches_that_are_kept_and_no_others() -> None:
    student = generic().student
    visible = VisibleOnly(student.net)
    pixels = batch().pixels
    keep = torch.tensor([[0, 5, 7]]).expand(4, 3)
    visible.set(keep)
    before = student(pixels).patches
    other = pixels.clone()
    other[:, :, 8:16, :8] = 0  # patch 6
    assert before.shape == (4, 3, 48) and torch.equal(student(other).patches, before)
    other[:, :, 8:16, 8:16] = 0  # patch 7
    assert not torch.allclose(student(other).patches, before)
    visible.set(None)
    assert student(pixels).patches.shape == (4, 24, 48)


def test_the_loss_is_smooth_l1_to_the_normalised_teacher() -> None:
    module, b = generic(), batch()
    outputs: list[torch.Tensor] = []
    module.decoder.register_forward_hook(lambda *args: outputs.append(args[2]))
    loss = run(module, b)["loss"]
    assert run(module, b)["loss"] == loss
    out = outputs[0].detach().double().numpy().reshape(4, 2, 2, 3, 2, 20).mean((2, 4)).reshape(4, 6, 20)
    target = b.teacher.patches.double().numpy()
    target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, keepdims=True) + 1e-5)
    error = np.abs(out - target)
    by_hand = np.where(error < 2, error**2 / 4, error - 1).mean()
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-4)
    masked = random_mask(b.sids[0], 0, 0, 24, 0.75)
    assert int(masked.sum()) == 18


def test_everything_is_trained() -> None:
    module = generic()
    run(module, batch())["loss"].backward()
    gradients = [(name, p.grad) for name, p in module.named_parameters() if name != "student.mask.token"]
    assert not [name for name, grad in gradients if grad is None or not grad.any()]


def test_a_convolution_sees_the_image_with_the_masked_blocks_painted_over() -> None:
    torch.manual_seed(1)
    module = G2sdGeneric(load_student("test_resnet", (32, 48), (2, 3)), TeacherSpace(20, (2, 3))).eval()
    b = batch()
    loss = run(module, b)["loss"]
    pixels = b.pixels.clone()
    for row, (sid, epoch) in enumerate(zip(b.sids, b.epochs, strict=True)):
        mask = random_mask(sid, epoch, 0, 6, 0.75).view(2, 3)
        mask = mask.repeat_interleave(16, 0).repeat_interleave(16, 1)
        pixels[row, :, mask] = 0
    assert not torch.equal(pixels, b.pixels) and run(module, replace(b, pixels=pixels))["loss"] == loss
    run(module.train(), b)["loss"].backward()
    parameters = dict(module.named_parameters())
    assert all(p.grad is not None for p in parameters.values())
    outside = [
        p for name, p in parameters.items() if not name.startswith("student.net.layer")
    ]  # zero-initialised
    assert all(p.grad is not None and p.grad.any() for p in outside)


def test_the_decoder_of_a_wide_student_is_narrower() -> None:
    student = load_student("resnet10t", (32, 48), (2, 3))
    module = G2sdGeneric(student, TeacherSpace(20, (2, 3)))
    assert student.dim == 512 and module.pos_embed.shape == (1, 6, 192)
    assert run(module, batch())["loss"].isfinite()


def test_a_convolution_cannot_leave_patches_out() -> None:
    with pytest.raises(ModelError, match="cannot leave patches out"):
        VisibleOnly(load_student("test_resnet", (32, 48), (1, 2)).net)


def test_without_attention_the_loss_is_plain_mse() -> None:
    from gkd_scale.distill.config import LossConfig, QsdConfig
    from gkd_scale.models.conditioning import Conditioning

    b = batch()
    space = TeacherSpace(20, (2, 3), Conditioning("layer"))
    d = distiller(space=space, qsd=QsdConfig(form="mse"), loss=LossConfig(mask_weight=0))
    losses = run(d, b)
    plain = d.features(b.pixels)
    target = [torch.nn.functional.layer_norm(t.float(), (20,)) for t in b.teacher]
    cls, patches = d.head_cls.proj_v(plain.cls), d.head_feature.proj_v(plain.patches)
    by_hand = (torch.cat([cls[:, None], patches], 1) - torch.cat([target[0][:, None], target[1]], 1)).square()
    torch.testing.assert_close(losses["loss_feature"], by_hand.mean())
    torch.testing.assert_close(losses["loss_cls"], (cls - target[0]).square().mean())
    assert not any("proj_q" in name for name, _ in d.named_parameters())
