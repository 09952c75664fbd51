"""Teachers give exactly timm's features, as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from gkd_scale.errors import ModelError
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.types import Features
from tests.conftest import TINY


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def normalise(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    return (x.float() / 255 - mean) / std


def tiny(weights: Path, **more: Any) -> TeacherConfig:
    return TeacherConfig(**{"name": "vit_tiny_patch16_224", "weights": weights, "args": dict(TINY), **more})


def save(tmp_path: Path, net: torch.nn.Module) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_file(net.state_dict(), path)
    return path


def test_a_transformer_gives_cls_and_patches_after_the_final_norm(tiny_teacher: Path) -> None:
    teacher = load_teacher(tiny(tiny_teacher), (32, 48))
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(32, 48), **TINY).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(load_file(tiny_teacher), net)
    net.load_state_dict(state)
    x = pixels(32, 48)
    with torch.no_grad():
        expected = net.forward_features(normalise(x, 0.5, 0.5))
    cls, patches = teacher(x)
    assert teacher.grid == (2, 3)
    assert teacher.dim == 48
    torch.testing.assert_close(cls, expected[:, 0])
    torch.testing.assert_close(patches, expected[:, 1:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_another_teacher(tiny_teacher: Path, dtype: str) -> None:
    both = [load_teacher(tiny(tiny_teacher, dtype=name), (32, 48)) for name in ("float32", dtype)]
    assert both[0].fingerprint() | {"dtype": dtype} == both[1].fingerprint()
    exact, near = (teacher(pixels(32, 48)).patches for teacher in both)
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0.05, atol=0.05)


def test_a_layer_is_timms_feature_of_that_index(tiny_teacher: Path) -> None:
    args = dict(TINY)
    teacher = load_teacher(tiny(tiny_teacher, args=args, layer=(0,)), (32, 48))
    x = pixels(32, 48)
    with torch.no_grad():
        expected = teacher.net.forward_intermediates(
            normalise(x, 0.5, 0.5), indices=[0], output_fmt="NCHW", intermediates_only=True
        )[0]
    torch.testing.assert_close(teacher(x).patches, expected.flatten(2).transpose(1, 2))
    assert teacher.fingerprint()["layer"] == 0


def test_several_layers_are_concatenated_in_the_order_given(tiny_teacher: Path) -> None:
    x = pixels(32, 48)

    def features(*layers: int) -> Features:
        return load_teacher(tiny(tiny_teacher, layer=layers), (32, 48))(x)

    both, first, last = features(-1, 0), features(0), features(1)
    torch.testing.assert_close(both.patches, torch.cat([last.patches, first.patches], -1))
    torch.testing.assert_close(both.cls, torch.cat([last.cls, first.cls], -1))


def test_layers_of_other_grids_and_layers_named_twice_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path, timm.create_model("test_resnet"))
    with pytest.raises(ModelError, match=r"different grids cannot be joined \(2: 8x12, 3: 4x6"):
        load_teacher(
            TeacherConfig("test_resnet", weights=file, layer=(2, 3)),
            (64, 96),
        )
    with pytest.raises(ModelError, match="names a level twice"):
        load_teacher(
            TeacherConfig("test_resnet", weights=file, layer=(4, -1)),
            (64, 96),
        )


def test_a_convolutional_teacher_gives_its_map_and_the_mean(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    teacher = load_teacher(
        TeacherConfig(
            "mobilenetv2_100",
            weights=save(tmp_path, net),
            args={"pad_type": "same"},
            layer=(3,),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        (64, 96),
    )
    levels = timm.create_model(
        "mobilenetv2_100", pad_type="same", features_only=True, out_indices=(3,)
    ).eval()
    levels.load_state_dict(net.state_dict(), strict=False)
    x = pixels(64, 96)
    with torch.no_grad():
        expected = levels(normalise(x, 0.5, 0.5))[0]
    cls, patches = teacher(x)
    assert teacher.grid == (4, 6)
    torch.testing.assert_close(patches, expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(cls, expected.mean((2, 3)))


def test_the_real_teacher_classifies_real_images(shared: Path) -> None:
    """Its features are those of the network that the weights belong to: distinct, finite, not constant."""
    file = shared / "teacher/mobilenetv2_100_imagenet1k.safetensors"
    teacher = load_teacher(
        TeacherConfig(
            "mobilenetv2_100", weights=file, args={"pad_type": "same"}, mean=(0.5,) * 3, std=(0.5,) * 3
        ),
        (224, 224),
    )
    cls, patches = teacher(pixels(224, 224))
    assert patches.shape == (2, 49, 1280)
    assert torch.isfinite(patches).all()
    assert float(patches.std()) > 0.01
    torch.testing.assert_close(cls, patches.mean(1))


def test_another_patch_size_resamples_the_patch_embedding(tiny_teacher: Path) -> None:
    args = {key: value for key, value in TINY.items() if key != "patch_size"}
    teacher = load_teacher(tiny(tiny_teacher, args=args, patch_size=8), (32, 48))
    assert teacher.grid == (4, 6)
    assert teacher.fingerprint()["patch_size"] == [8, 8]
    other = load_teacher(
        tiny(tiny_teacher, args=args, patch_size=8, patch_resize="bicubic"),
        (32, 48),
    )
    kernel = load_file(tiny_teacher)["patch_embed.proj.weight"]
    expected = torch.nn.functional.interpolate(kernel, size=(8, 8), mode="bicubic")
    torch.testing.assert_close(other.net.patch_embed.proj.weight.data, expected)
    assert other.fingerprint() != teacher.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vit_tiny_patch16_225"}, "did you mean"),
        ({"image_size": (33, 48)}, "--image-size 32x48"),
        ({"layer": (7,)}, "feature levels 0 to 1"),
        ({"args": {"patch_size": 16, "no_such": 1}}, "no_such"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_mistakes_are_named(tiny_teacher: Path, change: dict[str, Any], message: str) -> None:
    size, device = change.pop("image_size", (32, 48)), change.pop("device", "auto")
    with pytest.raises(ModelError, match=message):
        load_teacher(tiny(tiny_teacher, **change), size, device)


def test_the_fingerprint_tells_teachers_apart(tiny_teacher: Path) -> None:
    one = load_teacher(tiny(tiny_teacher), (32, 48))
    same = load_teacher(tiny(tiny_teacher), (32, 48))
    other = load_teacher(
        tiny(tiny_teacher, mean=(0.4,) * 3),
        (32, 48),
    )
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_the_shipped_teacher_takes_images_of_another_size_and_shape() -> None:
    for size, grid in (((96, 128), (12, 16)), ((32, 48), (4, 6)), ((64, 64), (8, 8))):
        teacher = load_teacher(TeacherConfig("demo_teacher"), size, "cpu")
        assert teacher.grid == grid
        assert teacher(pixels(*size)).patches.shape == (2, grid[0] * grid[1], teacher.dim)
