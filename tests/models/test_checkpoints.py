"""Folders and hub names that are no teacher, or not here: one line each, exit 2, nothing is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gkd_scale import cli
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from tests.conftest import write_images
from tests.models.transformers_families import save

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("ViT", tmp_path_factory.mktemp("hf") / "model")


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def remote_code(folder: Path) -> None:
    configure(folder, auto_map={"AutoModel": "modeling_mine.MyModel"})
    (folder / "modeling_mine.py").write_text("raise SystemExit('this code ran')\n")


def pickled_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def text_tower(folder: Path) -> None:
    small = transformers.CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    transformers.CLIPTextModel(small).save_pretrained(folder)


def missing_tensors(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    rest = {name: value for name, value in state.items() if "layer.1." not in name}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})


def more_layers(folder: Path) -> None:
    configure(folder, num_hidden_layers=1)


def other_width(folder: Path) -> None:
    configure(folder, intermediate_size=64)


def not_finite(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["layernorm.weight"][0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def masked_autoencoder(folder: Path) -> None:
    config = transformers.ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=56,
        patch_size=14,
    )
    transformers.ViTMAEModel(config).save_pretrained(folder)


def truncate(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config.json": (without_config, "holds no config.json"),
    "config.json that is no JSON": (lambda f: configure_text(f, "{"), "config.json cannot be read"),
    "remote code": (remote_code, "brings code of its own (modeling_mine.MyModel)"),
    "pickled weights only": (pickled_only, "holds pickled weights only (pytorch_model.bin)"),
    "no weights": (no_weights, "holds no weights"),
    "remote code, in one word": (
        lambda f: configure(f, auto_map="mine.Model"),
        "brings code of its own (mine.Model)",
    ),
    "config.json that is a list": (lambda f: configure_text(f, "[1, 2]"), "config.json cannot be read"),
    "a list of architectures": (lambda f: configure(f, model_type=["vit"]), "model_type '['vit']'"),
    "a backbone of timm": (
        lambda f: configure_text(f, '{"model_type": "timm_backbone", "backbone": "resnet18"}'),
        "holds a timm model, resnet18",
    ),
    "unknown architecture": (lambda f: configure(f, model_type="dinov9"), "model_type 'dinov9'"),
    "no architecture": (lambda f: configure_text(f, "{}"), "names no model_type"),
    "a text tower": (text_tower, "reads input_ids, not images"),
    "timm's folder": (
        lambda f: configure_text(f, '{"architecture": "resnet18"}'),
        "holds a timm model, resnet18",
    ),
    "quantised": (lambda f: configure(f, quantization_config={"bits": 4}), "holds quantised weights"),
    "adapters": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds adapters"),
    "tensors missing": (missing_tensors, "lacks 16 tensors of ViTModel"),
    "more layers than config.json says": (more_layers, "that its config.json has no place for"),
    "shapes of another config.json": (other_width, "do not load"),
    "a value that is no number": (not_finite, "NaN or infinite"),
    "half a file": (truncate, "do not load"),
    "tokens without a grid": (masked_autoencoder, "neither tokens of a grid nor a feature map"),
}


def configure_text(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


def error_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], teacher: str, *more: str) -> str:
    """What cache-teacher says of a teacher that it refuses: an error in one line, and a hint."""
    images = write_images(tmp_path / "images", 1, (64, 64))
    command = ["cache-teacher", "--images", str(images), "--image-size", "56", "--out", str(tmp_path / "c")]
    code = cli.main([*command, "--teacher", teacher, *more])
    output = capsys.readouterr()
    assert code == 2, output.out + output.err
    assert "Traceback" not in output.err and "this code ran" not in output.err + output.out
    assert not (tmp_path / "c/manifest.parquet").exists()
    return " ".join(output.err.split())


@pytest.mark.parametrize("what", FAULTS)
def test_a_folder_that_is_no_teacher(
    what: str, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(vit, tmp_path / "model")
    breaks, expected = FAULTS[what]
    breaks(folder)
    text = error_of(tmp_path, capsys, f"hf:{folder}")
    assert expected in text and "→" in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--teacher-args", "depth=3"), "--teacher-args is for timm's models"),
        (("--patch-size", "16"), "--patch-size is for timm's models"),
        (("--image-size", "60x56"), "is no whole number of"),
        (("--teacher-weights", "nowhere"), "there is no folder nowhere"),
    ],
)
def test_options_that_do_not_fit(
    options: tuple[str, ...], expected: str, vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in error_of(tmp_path, capsys, f"hf:{vit}", *options)


def test_sam_takes_its_own_size_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save("SAM", tmp_path / "model")
    assert "does not take 96x96 images" in error_of(tmp_path, capsys, f"hf:{folder}", "--image-size", "96")


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("hf:facebook/dinov2-small", "the hub cannot be reached"),
        ("hf:./nowhere", "there is no folder './nowhere'"),
        ("hf:dinov2", "give the folder as --teacher-weights"),
        ("hf:model/config.json/x/y", "there is no folder"),
    ],
)
def test_what_is_not_on_this_machine(
    teacher: str,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert expected in error_of(tmp_path, capsys, teacher)


def test_adapters_of_a_model_of_the_hub_are_refused(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "hub/models--somebody--vit"
    folder = shutil.copytree(vit, store / "snapshots" / ("0" * 40))
    (folder / "adapter_config.json").write_text("{}")
    (store / "refs").mkdir()
    (store / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "holds adapters" in error_of(tmp_path, capsys, "hf:somebody/vit")


def test_a_model_in_the_hubs_cache_needs_no_network(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "models--somebody--vit"
    shutil.copytree(vit, store / "snapshots" / ("0" * 40))
    (store / "refs").mkdir()
    (store / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    fingerprint = load_teacher(TeacherConfig("hf:somebody/vit"), (56, 56), "cpu").fingerprint()
    assert fingerprint["model"] == "hf:somebody/vit"
    assert (
        fingerprint | {"model": "hf:vit"} == load_teacher(TeacherConfig(f"hf:{vit}"), (56, 56)).fingerprint()
    )


def test_a_file_in_the_folder_names_its_folder(vit: Path) -> None:
    file = vit / "model.safetensors"
    by_file = load_teacher(TeacherConfig("hf:vit", weights=file), (56, 56)).fingerprint()
    assert by_file == load_teacher(TeacherConfig(f"hf:{vit}"), (56, 56)).fingerprint()


def test_another_file_in_the_folder_is_not_loaded(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(vit, tmp_path / "model")
    shutil.copy(folder / "model.safetensors", folder / "ft.safetensors")
    text = error_of(tmp_path, capsys, "hf:vit", "--teacher-weights", str(folder / "ft.safetensors"))
    assert "ft.safetensors is not what transformers loads" in text and "give the folder" in text
