"""``gkd-scale teachers``: what is counted, and what is on this machine."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from gkd_scale import cli
from gkd_scale.models import teacher_zoo
from tests.models.transformers_families import save
from tests.models.transformers_families import tower as tower_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and none of torch."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


def table(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    assert cli.main(["teachers", "--json", *flags]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def store(hub: Path, name: str) -> Path:
    folder = hub / f"models--{name.replace('/', '--')}" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.usefixtures("hub")
def test_the_table_names_every_teacher_once_and_is_sorted(capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys)
    names = [name for family in teacher_zoo.NAMES.values() for name in family]
    assert sorted(row["name"] for row in rows) == sorted(names)
    assert [row["parameters"] for row in rows] == sorted(row["parameters"] for row in rows)
    assert all(row["licence"] and row["gflops"] and not row["here"] for row in rows)
    assert f"--teacher {rows[0]['name']} --image-size 224" in rows[0]["command"]


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3.lvd1689m", "convnext_tiny.dinov3_lvd1689m"])
@pytest.mark.usefixtures("hub")
def test_a_row_is_what_is_counted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = (each for each in teacher_zoo.read() if each.name == name)
    assert teacher_zoo.count(name, "DINOv3") == row
    (larger,) = table(capsys, "--filter", name, "--image-size", "450")
    assert larger["side"] == 448
    assert larger["gflops"] > 3.9 * row.gflops


def test_weights_of_timm_on_this_machine_are_marked(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store(hub, "timm/vit_small_patch14_dinov2.lvd142m") / "model.safetensors").write_bytes(b"")
    checkpoints = hub.parent / "torch/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "IN22K-vit.h.14-900e.pth.tar").write_bytes(b"")
    names = [row["name"] for row in table(capsys, "--here")]
    assert names == ["vit_small_patch14_dinov2.lvd142m", "vit_huge_patch14_gap_224.in22k_ijepa"]


def test_models_of_transformers_on_this_machine_are_listed(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CLIP", "ConvNeXt"):
        folder = store(hub, f"somebody/{name.lower()}")
        shutil.copytree(save(name, tmp_path / name), folder, dirs_exist_ok=True)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (store(hub, "somebody/words") / "config.json").write_text('{"model_type": "bert"}')
    clip, convnext = sorted(table(capsys, "--here"), key=lambda row: str(row["name"]))
    assert (clip["name"], clip["family"], clip["licence"]) == ("hf:somebody/clip", "clip", "mit")
    assert (clip["stride"], clip["width"], clip["side"]) == (14, 48, 56)
    assert "--teacher hf:somebody/clip --image-size 56" in clip["command"]
    assert (convnext["stride"], convnext["width"]) == (32, 32)


@pytest.mark.usefixtures("hub")
def test_the_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["teachers", "--filter", "dinov2", "--millions", "20", "100"]) == 0
    output = capsys.readouterr().out
    assert "vit_base_patch14_dinov2.lvd142m" in output and "apache-2.0" in output
    assert "vit_large" not in output and "gkd-scale cache-teacher" in output


@pytest.mark.parametrize("flags", [("--here",), ("--filter", "dinov9")])
@pytest.mark.usefixtures("hub")
def test_no_teacher_is_an_error(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["teachers", *flags]) == 2
    assert "no teacher matches" in capsys.readouterr().err


ODD = {
    "a list": "[]",
    "a tower that is a text": '{"model_type": "clip", "vision_config": "x"}',
    "no widths": '{"model_type": "vit", "hidden_sizes": [null], "patch_size": 16}',
    "endless stages": '{"model_type": "vit", "hidden_size": 8, "patch_size": 4, "depths": 3}',
    "infinite": '{"model_type": "vit", "hidden_size": Infinity, "patch_size": 4}',
    "no images": '{"model_type": "bert", "hidden_size": 8, "patch_size": 4}',
    "of timm": '{"model_type": "timm_backbone", "backbone": "resnet18", "hidden_size": 8, "patch_size": 4}',
}


@pytest.mark.parametrize("what", ODD)
def test_an_odd_folder_does_not_end_the_list(
    what: str, hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("odd", "vit"):
        shutil.copytree(save("ViT", tmp_path / name), store(hub, f"somebody/{name}"), dirs_exist_ok=True)
    (store_of(hub, "odd") / "config.json").write_text(ODD[what])
    assert [row["name"] for row in table(capsys, "--here")] == ["hf:somebody/vit"]


def test_the_header_of_odd_weights_does_not_end_the_list(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("odd", "vit"):
        shutil.copytree(save("ViT", tmp_path / name), store(hub, f"somebody/{name}"), dirs_exist_ok=True)
    for head in (b"\xff" * 8 + b"{}", b"\2" + bytes(7) + b"[]", b"\7" + bytes(7) + b'{"a":1}'):
        (store_of(hub, "odd") / "model.safetensors").write_bytes(head)
        assert [row["name"] for row in table(capsys, "--here")] == ["hf:somebody/vit"]


def store_of(hub: Path, name: str) -> Path:
    return hub / f"models--somebody--{name}" / "snapshots" / ("0" * 40)


def test_the_list_never_asks_the_network_and_counts_the_vision_tower(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(save("CLIP", tmp_path / "clip"), store(hub, "somebody/clip"), dirs_exist_ok=True)
    tower = tower_of("CLIP", tmp_path / "clip")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (row,) = table(capsys, "--here")
    assert row["gflops"] and row["parameters"] == sum(each.numel() for each in tower.parameters())
    least = row["parameters"] / 1e6
    assert table(capsys, "--here", "--millions", f"{0.99 * least}", f"{1.01 * least}") == [row]
