"""Every competing method: its loss against the formula in numpy, its gradients, what it needs and keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gkd_scale.errors import ConfigError
from gkd_scale.models.backbone import load_backbone
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.outputs import backbone_outputs
from gkd_scale.models.registry import load_teacher
from gkd_scale.segment.augment import SegBatch
from gkd_scale.segment.config import MethodConfig
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.methods.af_dcd import contrast, pixel_divergence
from gkd_scale.segment.methods.base import Method, MethodInputs, MethodTeacher, random_masks
from gkd_scale.segment.methods.cwd import channel_divergence
from gkd_scale.segment.methods.registry import METHODS, build_method
from gkd_scale.segment.methods.student import StudentWithMethod, segmenter_in
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import IGNORE, LiveTeacher
from tests.conftest import TINY

from ..support import Blocks, tiny_backbone, tiny_segmenter  # noqa: TID252

Array = npt.NDArray[np.float64]
SIZE = (32, 48)
every_method = pytest.mark.parametrize("name", sorted(METHODS.keys() - {"none"}))


@pytest.fixture(scope="module")
def teacher(tiny_teacher: Path) -> LiveTeacher:
    return load_teacher(TeacherConfig("vit_tiny_patch16_224", weights=tiny_teacher, args=dict(TINY)), SIZE)


@pytest.fixture(scope="module")
def guide(teacher: LiveTeacher) -> MethodTeacher:
    head = tiny_segmenter("fpn")
    nn.init.normal_(head.head.get_parameter("classifier.weight"))
    return MethodTeacher(teacher, head)


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> MethodTeacher:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("cnn") / "net.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return MethodTeacher(
        load_teacher(TeacherConfig("test_resnet", weights=path), SIZE), None, Conditioning("layer")
    )


def batch(images: int = 2) -> SegBatch:
    samples = [Blocks(images)[index] for index in range(images)]
    pixels = torch.stack([torch.from_numpy(each.image).permute(2, 0, 1) for each in samples])
    return SegBatch(pixels, torch.stack([torch.from_numpy(each.label) for each in samples]))


def student_with(name: str, guide: MethodTeacher, **args: object) -> StudentWithMethod:
    segmenter = tiny_segmenter(frozen=False)
    return StudentWithMethod(segmenter, build_method(name, segmenter.backbone, guide, args), guide)


def inputs_of(of: StudentWithMethod, images: SegBatch) -> MethodInputs:
    backbone = of.segmenter.backbone
    outputs = backbone_outputs(backbone, images.pixels, of.method.levels)
    return MethodInputs(
        images.pixels, images.labels, outputs, of.teacher,
        head=lambda size: of.segmenter.head(outputs.maps, size),
        again=lambda change: backbone_outputs(backbone, images.pixels, change=change),
    )  # fmt: skip


def numbers(value: Tensor) -> Array:
    return value.detach().double().numpy()


def scalar(value: Tensor) -> float:
    return float(value.detach())


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def linear(layer: nn.Module, x: Array) -> Array:
    weight, bias = (numbers(layer.get_parameter(key)) for key in ("weight", "bias"))
    return x @ weight.reshape(len(weight), -1).T + bias


def layer_norm(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


# -------------------------------------------------------------------------------- the formulas


def test_vanilla_kd_is_the_squared_error_of_projected_tokens(guide: MethodTeacher) -> None:
    of = student_with("vanilla-kd", guide, weight=3.0)
    inputs = inputs_of(of, batch())
    prediction = linear(of.method.project, numbers(of.method.student_tokens(inputs.student)))
    expected = 3 * ((prediction - numbers(inputs.teacher_features.patches)) ** 2).mean()
    assert scalar(of.method(inputs)["loss_kd"]) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=15)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1.0, 4.0]), st.integers(0, 99)
)
def test_channel_divergence_is_that_of_cwd(b: int, c: int, side: int, t: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, y = rng.normal(size=(2, b, c, side, side))
    p, q = softmax(y.reshape(b, c, -1) / t, 2), softmax(s.reshape(b, c, -1) / t, 2)
    expected = t * t / (b * c) * (p * np.log(p / q)).sum()
    student, teacher = torch.from_numpy(s), torch.from_numpy(y)
    assert scalar(channel_divergence(student, teacher, t)) == pytest.approx(expected, abs=1e-4)
    assert scalar(channel_divergence(teacher, teacher, t)) == pytest.approx(0, abs=1e-4)
    assert scalar(channel_divergence(teacher + 7, teacher, t)) == pytest.approx(0, abs=1e-4)


def test_cwd_takes_logits_where_the_teacher_has_a_head_and_features_elsewhere(
    guide: MethodTeacher, teacher: LiveTeacher
) -> None:
    of = student_with("cwd", guide)
    student, theirs = inputs_of(of, batch()).logits
    assert student.shape == theirs.shape == (2, 4, 8, 12)
    expected = 3 * scalar(channel_divergence(student, theirs, 4.0).detach())
    assert scalar(of.method(inputs_of(of, batch()))["loss_kd"]) == pytest.approx(expected, rel=1e-4)
    of = student_with("cwd", MethodTeacher(teacher))
    inputs = inputs_of(of, batch())
    student = of.method.align(of.method.student_map(inputs.student))
    theirs = inputs.teacher_features.patches.transpose(1, 2).reshape(student.shape)
    expected = 50 * scalar(channel_divergence(student, theirs, 4.0).detach())
    assert scalar(of.method(inputs)["loss_kd"]) == pytest.approx(expected, rel=1e-4)


def contrast_by_hand(s: Array, t: Array, groups: int) -> float:
    """Patch by patch, anchor by anchor."""
    terms = []
    for b in range(len(s)):
        for top in range(0, s.shape[2] // 4 * 4, 4):
            for left in range(0, s.shape[3] // 4 * 4, 4):
                mine, theirs = (
                    [
                        group
                        for row in range(top, top + 4)
                        for column in range(left, left + 4)
                        for group in np.split(x[b, :, row, column], groups)
                    ]
                    for x in (s, t)
                )
                for i, anchor in enumerate(mine):
                    scores = np.array([-np.abs(anchor - other).mean() / 0.07 for other in theirs])
                    terms.append(-np.log(softmax(scores, 0)[i]))
    return float(np.mean(terms))


def test_contrast_is_that_of_af_dcd() -> None:
    s, t = np.random.default_rng(0).normal(size=(2, 2, 6, 5, 9)) / 10
    loss = contrast(torch.from_numpy(s), torch.from_numpy(t), 3)
    assert scalar(loss) == pytest.approx(contrast_by_hand(s, t, 3), rel=1e-4)
    assert scalar(contrast(torch.from_numpy(t), torch.from_numpy(t), 3)) < scalar(loss)


def test_pixel_divergence_is_the_mean_over_pixels() -> None:
    s, t = np.random.default_rng(1).normal(size=(2, 2, 5, 3, 4))
    p, q = softmax(t, 1), softmax(s, 1)
    expected = (p * np.log(p / q)).sum(1).mean()
    assert scalar(pixel_divergence(torch.from_numpy(s), torch.from_numpy(t))) == pytest.approx(
        expected, rel=1e-4
    )


def test_af_dcd_rebuilds_a_masked_quarter(guide: MethodTeacher) -> None:
    of = student_with("af-dcd", guide, rebuild=1.0)
    torch.manual_seed(3)
    inputs = inputs_of(of, batch())
    torch.manual_seed(3)
    terms = of.method(inputs)
    torch.manual_seed(3)
    visible = ~random_masks(2, 6, 0.75, torch.device("cpu"))
    assert visible.sum(1).tolist() == [2, 2]
    projection = linear(of.method.align, numbers(of.method.student_tokens(inputs.student)))
    masked = torch.from_numpy(projection * visible.numpy()[..., None]).float()
    output = of.method.generate(masked.transpose(1, 2).reshape(2, -1, 2, 3))
    target = inputs.teacher_features.patches.transpose(1, 2).reshape(output.shape)
    assert scalar(terms["loss_rebuild"]) == pytest.approx(
        scalar(((output - target) ** 2).sum() / 2), rel=1e-4
    )
    assert set(terms) == {"loss_rebuild", "loss_contrast", "loss_logits"}


def test_vitkd_mimics_two_blocks_and_rebuilds_masked_tokens(
    guide: MethodTeacher, teacher: LiveTeacher
) -> None:
    of = student_with("vitkd", guide, shallow=1.0, deep=1.0)
    images = batch()
    inputs = inputs_of(of, images)
    torch.manual_seed(3)
    terms = of.method(inputs)
    expected = 0.0
    for align, mine, theirs in zip(
        of.method.mimic, inputs.student.levels, teacher.levels(images.pixels, (0, 1)), strict=True
    ):
        # The student's grid is 4x6, the teacher's 2x3: the student's map is averaged over 2x2.
        mean = numbers(mine).reshape(2, -1, 2, 2, 3, 2).mean((3, 5))
        prediction = linear(align, mean.transpose(0, 2, 3, 1))
        expected += ((prediction - numbers(theirs).transpose(0, 2, 3, 1)) ** 2).sum() / 2
    assert scalar(terms["loss_shallow"]) == pytest.approx(expected, rel=1e-4)
    torch.manual_seed(3)
    masked = random_masks(2, 6, 0.5, torch.device("cpu"))
    tokens = linear(of.method.align, numbers(of.method.student_tokens(inputs.student)))
    tokens[masked.numpy()] = numbers(of.method.mask_token)
    output = of.method.generate(torch.from_numpy(tokens).float().transpose(1, 2).reshape(2, -1, 2, 3))
    error = (
        numbers(output).reshape(2, -1, 6).transpose(0, 2, 1) - numbers(inputs.teacher_features.patches)
    ) ** 2
    assert scalar(terms["loss_deep"]) == pytest.approx(error[masked.numpy()].sum() / 2 / 0.5, rel=1e-4)


def test_proteus_has_three_proxies(guide: MethodTeacher) -> None:
    of = student_with("proteus", guide)
    inputs = inputs_of(of, batch())
    torch.manual_seed(3)
    terms = of.method(inputs)
    cls, tokens = numbers(inputs.student.features.cls), numbers(of.method.student_tokens(inputs.student))
    target = numbers(inputs.teacher_features.cls), numbers(inputs.teacher_features.patches)
    error = (linear(of.method.head_cls[1], layer_norm(cls)) - target[0]) ** 2
    assert scalar(terms["loss_cls"]) == pytest.approx(error.mean(), rel=1e-4)
    both = np.concatenate([cls[:, None], tokens], 1)
    error = (
        linear(of.method.head_feature[1], layer_norm(both))
        - np.concatenate([target[0][:, None], target[1]], 1)
    ) ** 2
    assert scalar(terms["loss_feature"]) == pytest.approx(error.mean(), rel=1e-4)
    torch.manual_seed(3)
    mask = random_masks(2, 24, 0.5, torch.device("cpu"))
    of.method.mask.set(mask)
    second = backbone_outputs(of.segmenter.backbone, batch().pixels)
    of.method.mask.set(None)
    error = (
        linear(of.method.head_patch[1], layer_norm(numbers(of.method.student_tokens(second)))) - target[1]
    ) ** 2
    # A patch of the teacher is four of the student's, bilinear at half size is their mean.
    weight = numbers(mask).reshape(2, 2, 2, 3, 2).mean((2, 4)).reshape(2, 6)
    assert scalar(terms["loss_patch"]) == pytest.approx(
        (error.mean(2) * weight).sum() / weight.sum(), rel=1e-4
    )


def test_g2sd_learns_the_teachers_labels_at_half_weight(guide: MethodTeacher) -> None:
    of = student_with("g2sd", guide)
    inputs = inputs_of(of, batch())
    student, theirs = (numbers(each) for each in inputs.logits)
    labels = inputs.labels.numpy()[:, 2::4, 2::4]
    picks = np.take_along_axis(np.log(softmax(student, 1)), theirs.argmax(1)[:, None], 1)[:, 0]
    expected = -0.5 * picks[labels != IGNORE].sum() / labels.size
    assert scalar(of.method(inputs)["loss_hard"]) == pytest.approx(expected, rel=1e-4)
    losses = of(batch())
    assert scalar(losses["loss"]) == pytest.approx(
        scalar(0.5 * losses["loss_task"] + losses["loss_hard"]), rel=1e-4
    )


# ------------------------------------------------------------------------------ what all have


@every_method
@pytest.mark.parametrize("kind", ["transformer", "convolutional"])
def test_gradients_reach_the_student_and_never_the_teacher(
    name: str, kind: str, guide: MethodTeacher, convolutional: MethodTeacher
) -> None:
    if name == "g2sd" and kind == "convolutional":
        pytest.skip("needs a head")
    of = student_with(name, guide if kind == "transformer" else convolutional)
    of.train()
    losses = of(batch())
    terms = sum(value for key, value in losses.items() if key not in ("loss", "loss_task"))
    assert scalar(losses["loss"]) == pytest.approx(
        scalar(of.method.task_weight * losses["loss_task"] + terms), rel=1e-4
    )
    terms.backward()
    hits = [p.grad is not None and bool(p.grad.any()) for p in of.segmenter.backbone.parameters()]
    assert sum(hits) > len(hits) / 2
    gaps = [key for key, p in of.method.named_parameters() if p.grad is None]
    assert not gaps
    net = of.teacher.model.net
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
    assert not net.training


@pytest.mark.parametrize("name", ["vanilla-kd", "cwd", "af-dcd", "proteus"])
def test_a_convolutional_student_learns_and_its_statistics_are_those_of_whole_images(
    name: str, convolutional: MethodTeacher
) -> None:
    def train(method: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        backbone = load_backbone(None, "test_resnet", {})
        segmenter = Segmenter(backbone, build_head("linear", backbone.channels, 4), frozen=False)
        of = (
            StudentWithMethod(segmenter, build_method(name, backbone, convolutional), convolutional)
            if method
            else None
        )
        (of or segmenter)(batch())["loss"].backward()
        assert all(p.grad is not None for p in backbone.parameters())
        return {key: each for key, each in backbone.state_dict().items() if "running" in key}

    alone, both = train(False), train(True)
    assert any(bool(each.any()) for key, each in alone.items() if "mean" in key)
    assert all(torch.equal(each, both[key]) for key, each in alone.items())


@pytest.mark.parametrize("name", ["cwd", "af-dcd", "g2sd"])
def test_mask2former_is_compared_by_its_shares_of_the_classes(name: str, teacher: LiveTeacher) -> None:
    def segmenter() -> Segmenter:
        backbone = tiny_backbone()
        small = {"size": "small", "width": 32, "queries": 8, "points": 64, "decoder_layers": 2}
        head = build_head("mask2former", backbone.channels, 4, small)
        return Segmenter(backbone, head, frozen=False)

    guide, own = MethodTeacher(teacher, segmenter()), segmenter()
    of = StudentWithMethod(own, build_method(name, own.backbone, guide), guide)
    theirs = guide.logits(batch().pixels, (8, 12))
    with torch.no_grad():
        head = guide.require_head()
        scores = head.head(head.features(batch().pixels), (8, 12))
    assert torch.allclose(theirs.softmax(1), scores / scores.sum(1, keepdim=True), atol=5e-3)
    losses = of(batch())
    sum(value for key, value in losses.items() if key not in ("loss", "loss_task")).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in own.parameters() if p.grad is not None)


@every_method
def test_a_step_is_a_function_of_the_seeds(name: str, guide: MethodTeacher) -> None:
    def loss(seed: int) -> float:
        of = student_with(name, guide)
        torch.manual_seed(seed)
        return scalar(of(batch())["loss"].detach())

    assert loss(1) == loss(1)
    if name in ("af-dcd", "vitkd", "proteus"):
        assert loss(1) != loss(2)


@every_method
def test_what_is_trained_beside_the_student_stays_out_of_it(name: str, guide: MethodTeacher) -> None:
    of = student_with(name, guide)
    assert segmenter_in(of) is of.segmenter and segmenter_in(of.segmenter) is of.segmenter
    assert set(of.segmenter.state_dict()) == set(tiny_segmenter().state_dict())
    own = {key for key in of.state_dict() if not key.startswith("segmenter.")}
    assert all(key.startswith("method.") for key in own)
    assert bool(own) == (name not in ("cwd", "g2sd"))
    copy.deepcopy(of)(batch())


@every_method
def test_arguments_and_needs_are_checked(name: str, guide: MethodTeacher) -> None:
    with pytest.raises(ConfigError, match="no argument 'wieght'"):
        student_with(name, guide, wieght=1)
    with pytest.raises(ConfigError, match="--teacher"):
        student_with(name, MethodTeacher())
    key = "contrast" if name == "af-dcd" else "shallow" if name == "vitkd" else "weight"
    for value in ("abc", True, -1, float("nan")):
        with pytest.raises(ConfigError, match=f"--method-args {key}={value}: {key} of .* must be a num"):
            student_with(name, guide, **{key: value})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vitkd", {"ratio": 0}),
        ("g2sd", {"weight": 2}),
        ("cwd", {"temperature": 0}),
        ("af-dcd", {"groups": 1.5}),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, args: dict[str, object], guide: MethodTeacher) -> None:
    with pytest.raises(ConfigError, match="must be"):
        student_with(name, guide, **args)


def test_the_choices_of_the_flag_are_the_registry() -> None:
    choices = MethodConfig.__dataclass_fields__["name"].metadata["choices"]
    assert choices is METHODS and [name for name, row in METHODS.items() if row.make is None] == ["none"]


def test_random_masks_hide_the_share_asked_for() -> None:
    masks = random_masks(5, 10, 0.75, torch.device("cpu"))
    assert masks.sum(1).tolist() == [8] * 5
    assert random_masks(2, 3, 0.01, torch.device("cpu")).sum() == 2


def test_training_beside_a_method_lowers_its_loss(guide: MethodTeacher) -> None:
    def train(step: Callable[[], Tensor], module: Method | StudentWithMethod) -> list[float]:
        optimizer, history = torch.optim.AdamW(module.parameters(), 1e-3), []
        for _ in range(12):
            optimizer.zero_grad()
            loss = step()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    of = student_with("vanilla-kd", guide)
    images = batch()
    history = train(lambda: of(images)["loss"], of)
    assert history[-1] < 0.9 * history[0]
