"""The distiller on batches: named losses, the shared masked pass, students of other grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gkd_scale.distill.config import LossConfig, MaskConfig, QsdConfig, published
from gkd_scale.distill.losses.mse import mse
from gkd_scale.distill.objectives.base import Objective, TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller, token_variance
from gkd_scale.models.masking import masked_positions, random_mask
from gkd_scale.models.students import load_student
from gkd_scale.types import Batch, Features
from tests.conftest import TINY


def batch(count: int = 4, tokens: int = 6, dim: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        pixels=torch.randint(0, 256, (count, 3, 32, 48), dtype=torch.uint8, generator=generator),
        teacher=Features(
            torch.randn(count, dim, generator=generator).half(),
            torch.randn(count, tokens, dim, generator=generator).half(),
        ),
        sids=tuple(f"{i:016x}" for i in range(count)),
        epochs=(0,) * count,
        positions=tuple(range(count)),
    )


def distiller(
    name: str = "vit_tiny_patch16_224", space: TeacherSpace | None = None, **kwargs: object
) -> Distiller:
    torch.manual_seed(1)
    args = dict(TINY) if name.startswith("vit") else {}
    loss, qsd = published()
    kwargs = {"loss": loss, "qsd": qsd, **kwargs}
    student = load_student(name, (32, 48), (2, 3), args=args)
    return Distiller(student, space or TeacherSpace(20, (2, 3)), **kwargs)  # type: ignore[arg-type]


def run(module: Objective, of: Batch) -> dict[str, Tensor]:
    """The losses of a batch, with the masks and factors that its loader would have drawn."""
    losses: dict[str, Tensor] = module(module.draws.add(of))
    return losses


def two_full_passes(d: Distiller, b: Batch) -> Tensor:
    """The published form: a second pass over all images, half of them masked."""
    teacher = Features(*(t.float() for t in b.teacher))
    plain = d.student(b.pixels)
    mask = torch.zeros(len(b.sids), d.student.mask_tokens, dtype=torch.bool)
    for row in masked_positions(b.positions, 0.5):
        mask[row] = random_mask(b.sids[row], b.epochs[row], d.draws.seed, d.student.mask_tokens, 0.5)
    masked = d.student(b.pixels, mask).patches
    soft_cls = d.head_cls(plain.cls[:, None], teacher.cls[:, None])
    soft = d.head_feature(plain.patches, teacher.patches)
    target = torch.cat([teacher.cls[:, None], teacher.patches], 1)
    return (
        mse(torch.cat([soft_cls, soft], 1), target)
        + mse(d.head_mask(masked, teacher.patches), teacher.patches)
        + mse(soft_cls, teacher.cls[:, None])
    )


def test_targets_keep_the_bits_of_the_cache_in_bf16() -> None:
    """DeepSpeed casts parameters; the fp16 targets, 3 bits finer than bf16, go to the distance in float32."""
    d, b, targets = distiller(), batch(), []
    for parameter in d.parameters():
        parameter.data = parameter.data.bfloat16()

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        targets.append(teacher)
        return mse(student, teacher)

    d.heads[0].distance = distance
    assert run(d, b)["loss"].dtype == torch.float32
    patches, cls = b.teacher.patches.float(), b.teacher.cls[:, None].float()
    expected = [torch.cat([cls, patches], 1), cls, patches]
    assert len(targets) == 3 and all(map(torch.equal, targets, expected))
    assert not torch.equal(patches, patches.bfloat16().float())


def test_the_queries_of_the_cls_head_get_no_gradient() -> None:
    """Its one key has the weight 1 whatever φ says, in the reference too."""
    d = distiller()
    run(d, batch())["loss"].backward()
    heads = (d.head_cls, d.head_feature, d.head_mask)
    gradients = [[p.grad for p in head.proj_q.parameters() if p.grad is not None] for head in heads]
    assert [len(each) for each in gradients] == [4, 4, 4]
    largest = [max(float(grad.abs().max()) for grad in each) for each in gradients]
    assert largest[0] < 1e-5 * min(largest[1:]), "zero, but for what a kernel rounds"


def test_sharing_the_unmasked_half_changes_neither_loss_nor_gradients() -> None:
    d, b = distiller(), batch()
    loss = run(d, b)["loss"]
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in d.named_parameters() if p.grad is not None}
    d.zero_grad()
    full = two_full_passes(d, b)
    full.backward()
    torch.testing.assert_close(loss, full, atol=1e-6, rtol=1e-6)
    for name, parameter in d.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_weighted_sum_of_the_named_ones() -> None:
    weights = LossConfig(feature_weight=2.0, mask_weight=0.5, cls_weight=3.0, ladder_weight=0.0)
    losses = run(distiller(loss=weights), batch())
    total = 2.0 * losses["loss_feature"] + 0.5 * losses["loss_mask"] + 3.0 * losses["loss_cls"]
    torch.testing.assert_close(losses["loss"], total)


def test_without_mask_weight_there_is_no_masked_pass() -> None:
    losses = run(distiller(loss=LossConfig(mask_weight=0.0, ladder_weight=0.0)), batch())
    assert set(losses) == {"loss", "loss_feature", "loss_cls", "token_variance"}


def test_masking_nothing_leaves_the_plain_pass() -> None:
    d = distiller(mask=MaskConfig(probability=0.0))
    d.head_mask.load_state_dict(d.head_feature.state_dict())
    b = batch()
    losses = run(d, b)
    soft = d.head_feature(d.student(b.pixels).patches, b.teacher.patches.float())
    torch.testing.assert_close(losses["loss_mask"], mse(soft, b.teacher.patches))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_micro_batch_without_a_masked_image_runs_the_pass_and_leaves_it_out(name: str) -> None:
    """Losses and gradients are those of no second pass bit for bit, and the mask token's gradient is zero."""
    one = replace(batch(1), positions=(0,))
    results = []
    for mask in (MaskConfig(), MaskConfig(probability=0.0)):
        d = distiller(name, mask=mask).train()
        passes: list[object] = []
        d.student.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        losses = d(replace(d.draws, ranks=2).add(one))
        losses["loss"].backward()
        grads = {key: p.grad for key, p in d.named_parameters() if p.requires_grad}
        results.append((losses, grads, len(passes)))
    (losses, gradients, twice), (expected, without, once) = results
    assert (twice, once) == (2, 1)
    assert all(torch.equal(losses[key], value) for key, value in expected.items())
    assert without["student.mask.token"] is None and not gradients["student.mask.token"].any()
    assert all(torch.equal(gradients[key], grad) for key, grad in without.items() if grad is not None)
    assert all(grad is not None for grad in gradients.values())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_few_steps_lower_the_loss(name: str) -> None:
    d, b = distiller(name), batch()
    optimizer = torch.optim.AdamW(d.parameters(), 2e-3)
    first = float(run(d, b)["loss"].detach())
    for _ in range(30):
        optimizer.zero_grad()
        run(d, b)["loss"].backward()
        optimizer.step()
    assert float(run(d, b)["loss"].detach()) < 0.8 * first


def test_a_student_of_another_grid_is_resampled_to_the_teachers() -> None:
    torch.manual_seed(0)
    student = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args={**TINY, "patch_size": 8})
    assert student.grid == (4, 6)
    losses = run(Distiller(student, TeacherSpace(20, (2, 3))), batch())
    assert all(torch.isfinite(value) for value in losses.values())


def test_without_queries_the_loss_is_the_distance_of_the_projected_tokens() -> None:
    d, b = distiller(qsd=QsdConfig(form="mse")), batch()
    teacher = Features(*(t.float() for t in b.teacher))
    soft = d.head_feature.proj_v(d.student(b.pixels).patches)
    soft_cls = d.head_cls.proj_v(d.student(b.pixels).cls)
    expected = mse(
        torch.cat([soft_cls[:, None], soft], 1), torch.cat([teacher.cls[:, None], teacher.patches], 1)
    )
    assert torch.allclose(run(d, b)["loss_feature"], expected, atol=1e-6)
    assert not any("proj_q" in name for name, _ in d.named_parameters())


def test_jitter_moves_the_student_and_not_the_teacher() -> None:
    b = batch()
    still, other = run(distiller(), b), run(distiller(jitter=0.5), b)
    again = run(distiller(jitter=0.5), b)
    assert not torch.isclose(still["loss"], other["loss"])
    assert torch.equal(other["loss"], again["loss"])


def test_token_variance_is_a_share() -> None:
    tokens = torch.randn(4, 50, 8, generator=torch.Generator().manual_seed(0))
    assert float(token_variance(tokens)) == pytest.approx(1, abs=0.02)
    assert float(token_variance(tokens + 3)) == pytest.approx(0.1, abs=0.01)
    assert float(token_variance(torch.ones(4, 50, 8))) == 0
    assert float(token_variance(torch.zeros(4, 50, 8))) == 0


def test_the_masked_pass_leaves_batchnorms_running_statistics_to_the_whole_images() -> None:
    statistics = []
    for weight in (0.0, 1.0):
        d = distiller("mobilenetv4_conv_small_035", loss=LossConfig(mask_weight=weight)).train()
        run(d, batch())["loss"].backward()
        statistics.append({name: t for name, t in d.state_dict().items() if "running" in name})
    whole, both = statistics
    assert len(whole) > 10
    assert all(torch.equal(values, both[name]) for name, values in whole.items())
    assert not all(torch.equal(t, torch.zeros_like(t)) for name, t in both.items() if "mean" in name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_the_ladder_supervises_the_levels_that_stage_2_reads(name: str) -> None:
    """Its features are those of the plain pass, and every earlier level's projector gets a gradient."""
    d, b = distiller(name, loss=LossConfig(mask_weight=1.0, cls_weight=1.0, ladder_weight=2.0)), batch()
    plain = distiller(name).eval()
    losses = run(d, b)
    parts = losses["loss_feature"] + losses["loss_mask"] + losses["loss_cls"]
    torch.testing.assert_close(losses["loss"], parts + 2.0 * losses["loss_ladder"])
    losses["loss"].backward()
    assert len(d.ladder) == len(plain.student.level_widths()) > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in d.ladder.parameters() if p.ndim > 1)
    features, levels = plain.student.with_levels(b.pixels)
    for one, other in zip(features, plain.student(b.pixels), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert [each.shape[1] for each in levels] == plain.student.level_widths()


def test_relations_and_contrast_are_added_with_their_weights() -> None:
    weights = LossConfig(relation_weight=5.0, contrast_weight=0.1, distance="cosine")
    losses = run(distiller(loss=weights), batch())
    parts = losses["loss_feature"] + 0.1 * losses["loss_cls"] + losses["loss_ladder"]
    expected = parts + 5 * losses["loss_relation"] + 0.1 * losses["loss_contrast"]
    torch.testing.assert_close(losses["loss"], expected)
