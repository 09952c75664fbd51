"""What TAB offers, in the shells that this machine has and by the protocol of the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gkd_scale.cli import COMMANDS, main
from gkd_scale.completion import SHELLS
from tests.conftest import environment

OFFERS = [
    ("gkd-scale ca", {"cache-teacher"}),
    ("gkd-scale datasets ch", {"check"}),
    ("gkd-scale cache-teacher --view.c", {"--view.crop", "--view.color"}),
    ("gkd-scale datasets convert --c", {"--config", "--copy"}),
    ("gkd-scale cache-teacher --teacher-dtype ", {"float32", "bfloat16", "float16"}),
    ("gkd-scale inspect caches --sheet on", {"one.png"}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with one file, and a ``gkd-scale`` of this checkout in ``bin``."""
    program = tmp_path / "bin/gkd-scale"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gkd_scale.cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / "one.png").touch()
    return tmp_path


def shell(folder: Path, *command: str, **variables: str) -> str:
    """What a command prints in ``folder``."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**environment(), "PATH": path, "HOME": str(folder), **variables}
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("line", "offers"), OFFERS)
def test_commands_flags_choices_and_files_are_offered(line: str, offers: set[str], folder: Path) -> None:
    out = folder / "out"
    protocol = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    answer = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}
    assert shell(folder, "gkd-scale", **protocol, **answer) == ""
    assert {word.strip() for word in out.read_text().split("\n")} >= offers


def test_every_command_is_offered_and_no_other_flag(folder: Path) -> None:
    assert {name for name in COMMANDS if " " not in name} <= set(in_bash(folder, "gkd-scale "))
    assert "--teacher" not in in_bash(folder, "gkd-scale verify --")


def in_bash(folder: Path, line: str) -> list[str]:
    """What bash offers after ``line``, with the script that is printed for it."""
    script = folder / "completion.bash"
    script.write_text(shell(folder, "gkd-scale", "completion", "bash"))
    code = 'source completion.bash; _python_argcomplete gkd-scale; printf "%s\\n" "${COMPREPLY[@]}"'
    protocol = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    return [word.strip() for word in shell(folder, "bash", "-c", code, **protocol).splitlines()]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize(("line", "offers"), OFFERS)
def test_fish_offers_them(line: str, offers: set[str], folder: Path) -> None:
    (folder / "it.fish").write_text(shell(folder, "gkd-scale", "completion", "fish"))
    lines = shell(folder, "fish", "-c", f"source it.fish; complete -C '{line}'").splitlines()
    assert {line.split("\t")[0] for line in lines} >= offers


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_its_script(folder: Path) -> None:
    (folder / "_gkd-scale").write_text(shell(folder, "gkd-scale", "completion", "zsh"))
    code = f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; print ${{_comps[gkd-scale]}}"
    assert shell(folder, "zsh", "-f", "-c", code) == "_gkd-scale\n"


@pytest.mark.parametrize("name", SHELLS)
def test_a_script_is_printed_for_each_shell(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", name]) == 0
    assert "gkd-scale" in capsys.readouterr().out


def test_a_mistyped_shell_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err


def test_nothing_heavy_is_loaded_at_a_tab(folder: Path) -> None:
    """Each TAB starts Python: no torch, pydantic or timm."""
    code = (
        "import sys; from gkd_scale.completion import _parser; from gkd_scale.command_table import COMMANDS; "
    )
    code += "[_parser(name.split()) for name in COMMANDS]; "
    code += "print(sorted({'torch', 'deepspeed', 'ray', 'pydantic', 'timm'} & set(sys.modules)))"
    assert shell(folder, sys.executable, "-c", code).splitlines()[-1] == "[]"
