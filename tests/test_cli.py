"""The front: commands, exit codes, one error a mistake."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path

import pytest

from gkd_scale.cli import COMMANDS, main
from gkd_scale.command_table import Command
from tests.conftest import cache_flags, write_images


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            call(*name.split(), "--help")
        assert stop.value.code == 0
        assert f"gkd-scale {name}" in capsys.readouterr().out.split("examples:")[1]


def test_no_command_and_unknown_commands_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 2
    assert call("cache-techer") == 2
    assert "did you mean 'cache-teacher'" in capsys.readouterr().err
    assert call("--version") == 0


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("datasets", "chek", "folder", "nowhere") == 2
    assert "gkd-scale datasets has no 'chek'" in (error := capsys.readouterr().err)
    assert "did you mean 'check'" in error
    assert call("datasets check") == 2


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_a_row_names_a_function_of_its_config(command: Command) -> None:
    main, cls = pkgutil.resolve_name(command.main), pkgutil.resolve_name(command.config)
    first, *others = inspect.signature(main, eval_str=True).parameters.values()
    assert first.annotation is cls
    assert all(each.default is not inspect.Parameter.empty for each in others)
    result = inspect.signature(main, eval_str=True).return_annotation
    assert result is int or not command.exit_status


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--images", "nowhere"), "nowhere"),
        (("--image-size", "33x48"), "32x48"),
        (("--image-size", "big"), "'big'"),
        (("--teacher", "vit_tiny_patch16_225"), "did you mean"),
        (("--teacher-weights", "nowhere.pth"), "nowhere.pth"),
        (("--codec", "fp17"), "did you mean 'fp16'"),
        (("--views", "0"), "views"),
        (("--teacher-layer", "12"), "feature levels"),
    ],
)
def test_mistakes_of_cache_teacher(
    change: tuple[str, str],
    message: str,
    tmp_path: Path,
    tiny_teacher: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = write_images(tmp_path / "images", 2)
    assert call("cache-teacher", *cache_flags(images, tiny_teacher, tmp_path / "out"), *change) == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ")
    assert error.count("error:") == 1
    assert not (tmp_path / "out" / "manifest.parquet").exists()


def test_an_empty_folder_and_unreadable_images(
    tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert call("cache-teacher", *cache_flags(tmp_path / "empty", tiny_teacher, tmp_path / "out")) == 2
    images = write_images(tmp_path / "images", 3)
    whole = (images / "001.png").read_bytes()
    (images / "001.png").write_bytes(whole[: len(whole) // 2])
    assert call("cache-teacher", *cache_flags(images, tiny_teacher, tmp_path / "out")) == 0
    assert "001.png" in capsys.readouterr().out


def test_verify_tells_whole_from_damaged(
    tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    cache = tmp_path / "cache"
    assert call("cache-teacher", *cache_flags(images, tiny_teacher, cache)) == 0
    assert call("verify", cache) == 0
    tar = next(cache.glob("v01/*.tar"))
    data = bytearray(tar.read_bytes())
    data[700] ^= 16
    tar.write_bytes(data)
    capsys.readouterr()
    assert call("verify", cache) == 1
    assert f"v01/{tar.name}" in capsys.readouterr().out
    assert call("verify", tmp_path / "nothing") == 2


def test_a_cache_is_built_straight_to_a_url(
    tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, url = write_images(tmp_path / "images", 3), f"file://{tmp_path}/there"
    flags = (*cache_flags(images, tiny_teacher, Path(url)), "--staging", tmp_path / "staging")
    assert call("cache-teacher", *flags, "--teacher-dtype", "bfloat16") == 0
    assert f"{url} is complete" in capsys.readouterr().out
    assert call("verify", tmp_path / "there") == 0
    assert not list((tmp_path / "staging").rglob("*.tar"))
    assert '"dtype": "bfloat16"' in (tmp_path / "there" / "cache.json").read_text()


def test_another_teacher_in_the_same_folder_is_refused(
    tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 3)
    flags = cache_flags(images, tiny_teacher, tmp_path / "cache")
    assert call("cache-teacher", *flags) == 0
    assert call("cache-teacher", *flags, "--mean", "0.4", "0.4", "0.4") == 2
    assert "mean" in capsys.readouterr().err
    assert call("cache-teacher", *flags) == 0
