"""Teachers from transformers: the tokens of the model itself, for every family, through cache-teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from gkd_scale import cli
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.views import decode
from gkd_scale.errors import ModelError
from gkd_scale.models import hf, weights
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher, teacher_cost
from gkd_scale.segment.methods.base import MethodTeacher
from tests.conftest import write_images
from tests.models.test_dialects import hugging_faces
from tests.models.transformers_families import FAMILIES, normalise, save, shake, tower

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 2, (96, 96))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(name, tmp_path_factory.mktemp("hf") / "model") for name in FAMILIES}


def load(folder: Path, size: tuple[int, int], **options: Any) -> Any:
    return load_teacher(TeacherConfig(f"hf:{folder}", **options), size, "cpu")


def pixels(size: tuple[int, int], images: int = 2) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("name", FAMILIES)
def test_cache_teacher_stores_what_the_model_itself_gives(
    name: str, folders: dict[str, Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, folder, out = FAMILIES[name], folders[name], tmp_path / "cache"
    command = ["cache-teacher", "--images", images, "--teacher", f"hf:{folder}", "--out", out]
    assert cli.main([*map(str, command), "--image-size", "{}x{}".format(*family.size)]) == 0
    capsys.readouterr()
    cache = Cache.open(out)
    sample = cache.read(0, 0)
    picture = torch.from_numpy(decode(sample.jpeg))[None]
    with torch.no_grad():
        expected = family.expected(tower(name, folder), normalise(picture))[0]
    tokens = torch.from_numpy(sample.patches).float()
    assert tokens.shape == (cache.spec.grid[0] * cache.spec.grid[1], family.dim)
    torch.testing.assert_close(tokens, expected, atol=4e-3, rtol=4e-3)  # stored as float16
    teacher = cache.spec.teacher
    assert teacher["prefix_tokens"] == family.prefix
    assert teacher["cls"] == ("token" if family.prefix else "mean")
    again = ["verify", out, "--rerun-teacher", 1, "--teacher-weights", folder]
    assert cli.main(list(map(str, again))) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_levels_are_the_hidden_states_before_the_final_norm(name: str, folders: dict[str, Path]) -> None:
    family = FAMILIES[name]
    teacher = load(folders[name], family.size)
    x = pixels(family.size)
    *levels, last = teacher.every_level(x)
    assert len(levels) == family.levels
    assert [each.shape[1] for each in levels] == teacher.level_widths(range(family.levels))
    torch.testing.assert_close(last.flatten(2).transpose(1, 2), teacher(x).patches)
    for index in (0, -1):
        alone = load(folders[name], family.size, layer=(index,))
        assert alone.grid == levels[index].shape[2:]
        torch.testing.assert_close(alone(x).patches, levels[index].flatten(2).transpose(1, 2))
        torch.testing.assert_close(teacher.levels(x, [index])[0], levels[index])
    assert not torch.allclose(levels[-1].mean(), last.mean(), atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_cost_needs_no_weights(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    family = FAMILIES[name]
    shutil.copy(folders[name] / "config.json", tmp_path)
    cost = teacher_cost(TeacherConfig(f"hf:{tmp_path}"), family.size)
    teacher = load(folders[name], family.size)
    assert (cost.dim, cost.grid) == (teacher.dim, teacher.grid)
    assert cost.flops > 0 and cost.parameters >= teacher.parameters >= cost.largest_layer


@pytest.mark.parametrize(
    "config", [{"model_type": "vit", "patch_size": 0}, {"model_type": "maskformer-swin", "depths": [1, 1]}]
)
def test_the_cost_of_a_model_without_tokens_is_an_error(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not take 64x64 images"):
        teacher_cost(TeacherConfig(f"hf:{tmp_path}"), (64, 64))


def test_methods_of_stage_2_take_it(folders: dict[str, Path]) -> None:
    guide = MethodTeacher(load(folders["Dinov2"], (56, 84)))
    x = pixels((56, 84))
    assert guide.level_widths([0, 1]) == [48, 48]
    assert [tuple(each.shape) for each in guide.levels(x, [0, 1])] == [(2, 48, 4, 6)] * 2
    assert guide.features(x).patches.shape == (2, 24, 48)
    assert len(guide.identity()) == 2


def test_layers_are_numbered_and_joined_as_for_timm(folders: dict[str, Path]) -> None:
    x, folder = pixels((56, 84)), folders["Dinov2"]
    both = load(folder, (56, 84), layer=(-1, 0))
    parts = [load(folder, (56, 84), layer=(layer,))(x) for layer in (-1, 0)]
    assert both.fingerprint()["layer"] == [-1, 0]
    torch.testing.assert_close(both(x).patches, torch.cat([each.patches for each in parts], -1))
    torch.testing.assert_close(both(x).cls, torch.cat([each.cls for each in parts], -1))
    net = tower("Dinov2", folder)
    with torch.no_grad():
        states = net(normalise(x), output_hidden_states=True).hidden_states
    torch.testing.assert_close(parts[1].patches, states[1][:, 1:])
    torch.testing.assert_close(parts[0].cls, states[2][:, 0])


@pytest.mark.parametrize(
    ("layers", "error"),
    [((2,), "feature levels 0 to 1, not 2"), ((0, -2), "names a level twice")],
)
def test_wrong_layers_are_refused(layers: tuple[int, ...], error: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=error):
        load(folders["ViT"], (56, 84), layer=layers)


def test_stages_of_different_grids_are_not_joined(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="different grids cannot be joined"):
        load(folders["ConvNeXt"], (64, 96), layer=(2, 3))


_TINY: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "window_size": 2}
STAGES: dict[str, tuple[Any, list[tuple[int, int]]]] = {  # width and rows of the levels, for 64x64
    "swin": (transformers.SwinConfig(image_size=64, **_TINY), [(16, 16), (32, 8), (64, 4)]),
    "swinv2": (transformers.Swinv2Config(image_size=64, **_TINY), [(16, 16), (32, 8), (64, 4)]),
    "cvt": (
        transformers.CvtConfig(embed_dim=[16, 32, 64], num_heads=[1, 2, 4], depth=[1, 2, 3]),
        [(16, 16), (32, 8), (64, 4)],
    ),
}


@pytest.mark.parametrize("name", ["swin", "swinv2", "cvt"])
def test_levels_of_stages_are_timms(name: str, tmp_path: Path) -> None:
    config, expected = STAGES[name]
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    teacher = load(tmp_path, (64, 64))
    *levels, _ = teacher.every_level(pixels((64, 64)))
    assert [(each.shape[1], each.shape[2]) for each in levels] == expected
    assert teacher_cost(TeacherConfig(f"hf:{tmp_path}", layer=(0,)), (64, 64)).dim == 16
    assert load(tmp_path, (64, 64), layer=(1,)).grid == (8, 8)


def test_states_of_mobilenet_begin_with_its_first_block() -> None:
    config = transformers.MobileNetV2Config(image_size=64)
    net = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        out = net(torch.zeros(1, 3, 64, 64), output_hidden_states=True)
    assert len(hf._levels_of(out, config)) == len(out.hidden_states) == len(net.layer)


def test_states_after_downsampling_are_no_levels() -> None:
    stages = [torch.zeros(1, 16, 8), torch.zeros(1, 4, 16), torch.zeros(1, 1, 32), torch.ones(1, 1, 32)]
    out = SimpleNamespace(hidden_states=stages)
    (level,) = hf._levels_of(out, SimpleNamespace(depths=[2, 2, 2]))
    assert level is stages[-1]


@pytest.mark.parametrize("name", ["ViT", "BEiT", "CLIP's vision tower"])
def test_at_its_own_size_nothing_is_resampled(name: str, folders: dict[str, Path]) -> None:
    x, net = pixels((56, 56)), tower(name, folders[name])
    teacher = load(folders[name], (56, 56), layer=(-1,))
    with torch.no_grad():
        expected = net(normalise(x), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(teacher(x).patches, expected[:, 1:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(dtype: str, folders: dict[str, Path]) -> None:
    x = pixels((56, 84))
    exact, near = (load(folders["Dinov2"], (56, 84), dtype=each) for each in ("float32", dtype))
    assert exact.fingerprint() | {"dtype": dtype} == near.fingerprint()
    torch.testing.assert_close(near(x).patches, exact(x).patches, atol=0.1, rtol=0.1)


def test_a_folder_may_move_and_other_weights_are_another_teacher(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["ViT"], tmp_path / "elsewhere")
    one, other = (load(folder, (56, 84)).fingerprint() for folder in (folders["ViT"], copy))
    assert one == other and one["model"] == "hf:vit"
    assert json.loads(json.dumps(one)) == one
    torch.manual_seed(1)
    shake(transformers.ViTModel.from_pretrained(copy)).save_pretrained(copy)
    assert load(copy, (56, 84)).fingerprint()["weights_sha256"] != one["weights_sha256"]


def test_a_pooler_that_the_file_lacks_does_not_matter(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["ViT"], tmp_path / "model")
    transformers.ViTModel.from_pretrained(folders["ViT"], add_pooling_layer=False).save_pretrained(
        tmp_path / "model"
    )
    with_one, without = (load(each, (56, 84)) for each in (folders["ViT"], tmp_path / "model"))
    assert with_one.fingerprint() == without.fingerprint()


def test_a_classifier_beside_the_backbone_does_not_matter(folders: dict[str, Path], tmp_path: Path) -> None:
    net = transformers.Dinov2ForImageClassification.from_pretrained(folders["Dinov2"])
    shutil.copytree(folders["Dinov2"], tmp_path / "model")
    net.save_pretrained(tmp_path / "model")
    plain, classifier = (load(each, (56, 84)) for each in (folders["Dinov2"], tmp_path / "model"))
    assert plain.fingerprint()["weights_sha256"] == classifier.fingerprint()["weights_sha256"]


def prepare(folder: Path, tmp_path: Path, **values: object) -> Path:
    """A copy whose preprocessor says ``values``."""
    copy = shutil.copytree(folder, tmp_path / "model")
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({}, 0.4, 0.2),
        ({"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3}, 0.5, 0.2),
        ({"rescale_factor": 2 / 255}, 0.2, 0.1),
    ],
)
def test_mean_and_std_are_of_the_preprocessor(
    values: dict[str, Any], mean: float, std: float, folders: dict[str, Path], tmp_path: Path
) -> None:
    teacher = load(prepare(folders["ViT"], tmp_path, **values), (56, 84))
    assert (teacher.mean[0], teacher.std[0]) == pytest.approx((mean, std))
    mine = load(folders["ViT"], (56, 84), mean=(0.1, 0.1, 0.1))
    assert (mine.mean[0], mine.std[0]) == pytest.approx((0.1, 0.2))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order: channels in the order blue, green, red"),
        ({"rescale_offset": True}, "says rescale_offset"),
        ({"rescale_factor": 0}, "rescale_factor 0: it must be a number above 0"),
        ({"rescale_factor": "x"}, "rescale_factor 'x'"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean \(0.5, 0.5\): it must be three numbers"),
        ({"image_mean": "half"}, "image_mean 'half'"),
        ({"image_mean": [127.5] * 3}, "at least 0 and at most 1 for pixels in 0..1"),
        ({"image_std": [0.2, 0, 0.2]}, "above 0 and at most 1"),
        ({"image_std": [0.2, None, 0.2]}, r"image_std \(0.2, None, 0.2\)"),
    ],
)
def test_a_preprocessor_that_says_no_mean_and_std_is_refused(
    values: dict[str, Any], expected: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"preprocessor_config.json .*{expected}"):
        load(prepare(folders["ViT"], tmp_path, **values), (56, 84))


def test_without_a_preprocessor_mean_and_std_must_be_said(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["ViT"], tmp_path / "model")
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        load(copy, (56, 84))
    both = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    assert load(copy, (56, 84), **both).fingerprint() == load(folders["ViT"], (56, 84)).fingerprint()


def test_real_dinov2_through_transformers_gives_timms_tokens(shared: Path, tmp_path: Path) -> None:
    """Of 8x8 patches, with the position embeddings of a corner: at its own size nothing is resampled."""
    state = {
        name: value.float()
        for name, value in weights.read_state_dict(
            shared / "teacher/dinov2_vits14_timm_fp16.safetensors"
        ).items()
    }
    corner = state["pos_embed"][:, 1:].unflatten(1, (37, 37))[:, :8, :8].flatten(1, 2)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], corner], 1)
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=112, patch_size=14, layer_norm_eps=1e-6
    )
    net = transformers.Dinov2Model(config)
    mask = {"embeddings.mask_token": torch.zeros(1, 384)}
    for folder, tensors in (("hf", hugging_faces(state) | mask), ("timm", state)):
        (tmp_path / folder).mkdir()
        whole = {name: value.contiguous() for name, value in tensors.items()}
        save_file(whole, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(tmp_path / "hf")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transformers.BitImageProcessor(image_mean=mean, image_std=std).save_pretrained(tmp_path / "hf")
    x = pixels((112, 112), 1)
    for layer in ((9,), ()):
        through = load(tmp_path / "hf", (112, 112), layer=layer)
        timms = TeacherConfig(
            "vit_small_patch14_dinov2.lvd142m",
            weights=tmp_path / "timm/model.safetensors",
            args={"img_size": 112},
            layer=layer,
        )
        ours, theirs = through(x), load_teacher(timms, (112, 112), "cpu")(x)
        torch.testing.assert_close(ours.patches, theirs.patches, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.cls, theirs.cls, atol=1e-4, rtol=1e-4)
    assert through.parameters == sum(each.numel() for each in net.parameters())
