from __future__ import annotations

import json
from pathlib import Path

import pytest

from gkd_scale import console
from gkd_scale.cli import main
from tests.conftest import cache_flags, write_images


def plan(images: Path, weights: Path, out: Path, *more: object) -> list[str]:
    return ["plan", *map(str, cache_flags(images, weights, out)), *map(str, more)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 12)


def test_a_url_has_room_and_half_precision_is_counted_at_its_own_peak(
    images: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = []
    for dtype in ("float32", "bfloat16"):
        more = ("--students", "demo_student", "--teacher-dtype", dtype, "--json")
        assert main(plan(images, tiny_teacher, Path("memory://cache"), *more)) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["disk_free"] is None and all(row["fits"] for row in report["codecs"])
        hours.append(report["teacher_hours"])
    assert hours[0] / hours[1] == pytest.approx(989 / 67)


@pytest.mark.parametrize("codec", ["fp16", "int8", "tc2.1", "pca14"])
def test_the_planned_bytes_are_those_of_the_build(
    codec: str, images: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = ("--students", "demo_student", "--codec", codec, "--json")
    assert main(plan(images, tiny_teacher, tmp_path / "out", *student)) == 0
    report = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "out").exists()
    assert (report["images"], report["views"], report["grid"], report["dim"]) == (12, 2, [2, 3], 48)
    flags = [*cache_flags(images, tiny_teacher, tmp_path / "out"), "--codec", codec]
    assert main(["cache-teacher", *map(str, flags)]) == 0
    tars = sum(tar.stat().st_size for tar in (tmp_path / "out").rglob("*.tar"))
    (entry,) = [row for row in report["codecs"] if row["codec"] == codec]
    assert 2 * entry["view"] == pytest.approx(tars, abs=6 * 10240), "a tar record for each of 6 shards"
    whole = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert entry["total"] == pytest.approx(whole, rel=0.35)


def test_the_table_names_codecs_students_and_room(
    images: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    more = ("--students", "vit_base_patch16_224", "--image-size", "32x48", "--gpu", "a100", "--measure", 1)
    assert main(plan(images, tiny_teacher, tmp_path / "deep" / "out", *more)) == 0
    output = capsys.readouterr().out
    for part in (
        "int8",
        "tc2.1",
        "vit_base_patch16_224",
        "ZeRO-3",
        "measured here",
        "8 x a100",
        f"free at {tmp_path}",
    ):
        assert part in output, part


def test_the_cache_pays_after_about_as_many_epochs_as_it_has_views(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["plan", "--images", images, "--out", tmp_path / "out", "--teacher", "vit_large_patch16_224"]
    flags += ["--image-size", 224, "--students", "vit_small_patch16_224", "--json", "--views"]
    epochs = {}
    for views in (1, 4):
        assert main([str(flag) for flag in (*flags, views, "--disk-gbs", 100)]) == 0
        (student,) = json.loads(capsys.readouterr().out)["students"]
        epochs[views] = student["pays_after"]
    assert epochs == {1: pytest.approx(1), 4: pytest.approx(4)}
    assert main([str(flag) for flag in (*flags, 1, "--disk-gbs", 0.0001)]) == 0
    assert json.loads(capsys.readouterr().out)["students"][0]["pays_after"] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpu", "h10"], "did you mean 'h100'"),
        (["--students", "vit_smal_patch16_224"], "did you mean"),
        (["--codec", "int7"], "did you mean 'int8'"),
        (["--images", "nowhere"], "does not exist"),
    ],
)
def test_mistakes_exit_2(
    more: list[str],
    message: str,
    images: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(plan(images, tiny_teacher, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
