"""A teacher that is not timm's is one file (``toy_teacher.py``) and one row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gkd_scale
from gkd_scale import cli
from gkd_scale.errors import ConfigError, ModelError
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import TEACHERS, Family, load_teacher, teacher_cost
from gkd_scale.segment.augment import SegBatch
from gkd_scale.segment.methods.base import MethodTeacher
from gkd_scale.segment.methods.registry import METHODS, build_method
from gkd_scale.segment.methods.student import StudentWithMethod
from gkd_scale.types import LiveTeacher
from tests.conftest import write_images
from tests.segment.support import Blocks, tiny_segmenter, write_folder

SIZE = (32, 48)


@pytest.fixture(autouse=True)
def toy_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHERS, "toy:", Family("tests.models.toy_teacher:load"))


def toy() -> LiveTeacher:
    return load_teacher(TeacherConfig("toy:colours", args={"gain": 2}), SIZE)


def pixels(images: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (images, 3, *SIZE), dtype=torch.uint8)


def test_a_toy_builds_a_cache_that_is_verified_repaired_and_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = write_images(tmp_path / "images", 3), tmp_path / "cache"
    flags = ["--images", str(images), "--teacher", "toy:colours", "--teacher-args", "gain=2"]
    assert cli.main(["cache-teacher", *flags, "--image-size", "32x48", "--out", str(out)]) == 0
    cache = gkd_scale.Cache.open(out)
    assert cache.fingerprint == toy().fingerprint() and cache.spec.grid == (4, 6)
    expected = toy()(cache[1].pixels[None]).patches[0]
    torch.testing.assert_close(cache[1].patches.float(), expected, rtol=1e-3, atol=1e-3)
    next(out.rglob("*.tar")).unlink()
    assert cli.main(["repair", str(out), "--images", str(images)]) == 0
    assert cli.main(["verify", str(out), "--rerun-teacher", "3"]) == 0
    assert "3 samples computed again: 0 differ" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.make])
def test_every_method_of_stage_2_takes_a_toy(name: str) -> None:
    teacher, segmenter = MethodTeacher(toy(), tiny_segmenter("fpn")), tiny_segmenter(frozen=False)
    of = StudentWithMethod(segmenter, build_method(name, segmenter.backbone, teacher), teacher)
    of(SegBatch(pixels(), torch.zeros(2, *SIZE, dtype=torch.uint8)))["loss"].backward()
    assert all(p.grad is not None for p in of.method.parameters())
    assert teacher.identity()[0] == "toy"


def test_probe_measures_each_level_of_a_toy(tmp_path: Path) -> None:
    data = [f"--{part}=folder:{write_folder(tmp_path / part, Blocks(2))}" for part in ("train", "val")]
    flags = ["--teacher", "toy:colours", "--image-size", "32x48", "--out", str(tmp_path / "out")]
    assert cli.main(["probe", *flags, *data]) == 0
    levels = json.loads((tmp_path / "out/probe.json").read_text())["levels"]
    assert [level["layer"] for level in levels] == [0, 1, None]


def test_the_longest_prefix_decides_and_any_other_name_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHERS, "toy:other:", Family("tests.models.no_such_module:load"))
    assert toy().name == "toy:colours"
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load_teacher(TeacherConfig("toy:other:x"), SIZE)
    with pytest.raises(ModelError, match="toyer"):
        load_teacher(TeacherConfig("toyer"), SIZE)
    with pytest.raises(ConfigError, match="no teacher is named"):
        load_teacher(TeacherConfig(), SIZE)


def test_what_nothing_counts_is_said() -> None:
    assert teacher_cost(TeacherConfig("demo_teacher", layer=(1, 3)), SIZE).dim == 2 * 128
    with pytest.raises(ModelError, match="nothing counts the arithmetic of 'toy:colours'"):
        teacher_cost(TeacherConfig("toy:colours"), SIZE)


@pytest.mark.parametrize("layer", [None, (1,), (3, 1)])
def test_a_fingerprint_says_how_its_teacher_is_loaded(layer: tuple[int, ...] | None) -> None:
    config = TeacherConfig("demo_teacher", layer=layer, dtype="bfloat16", mean=(0.1, 0.2, 0.3), patch_size=16)
    fingerprint = json.loads(json.dumps(load_teacher(config, SIZE, "cpu").fingerprint()))
    again = load_teacher(TeacherConfig.of_fingerprint(fingerprint), SIZE, "cpu")
    assert again.fingerprint() == load_teacher(config, SIZE, "cpu").fingerprint()
    assert TeacherConfig.of_fingerprint(fingerprint, Path("w")).weights == Path("w")
    assert TeacherConfig.of_fingerprint(toy().fingerprint()) == TeacherConfig("toy:colours", args={"gain": 2})
