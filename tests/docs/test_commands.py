"""Every command line in the documents is one that its program takes."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from gkd_scale import config
from gkd_scale.cli import COMMANDS
from gkd_scale.distill.config import Stage1Config
from tests.commands import CONFIGS, parse
from tests.conftest import ROOT
from tests.docs.pages import OUTPUTS, PAGES, command_lines, fences, prose

OTHERS = {"source", "sha256sum", "pip"}
"""Programs that are not ours."""
LAUNCHER_FLAGS = {
    *("num_gpus", "master_port", "master_addr", "hostfile", "no_ssh", "node_rank"),  # deepspeed
    *("nproc-per-node", "nnodes", "rdzv-backend", "rdzv-endpoint", "master-port"),  # torchrun
    *("signal", "local_rank", "help", "config", "version"),
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that looks like a checkout in which a search has ended."""
    for name in ("launchers", "shards", "tuning", "benchmarks", "gkd_scale", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    best = tmp_path / "runs/tune/best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(config.to_yaml(Stage1Config()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("checkout")
def test_every_command_of_a_page_is_taken_by_its_parser(page: Path) -> None:
    for words in command_lines(page):
        accept(words)


def accept(words: list[str]) -> None:
    """Fails where a command could not run as it is written, as far as its words tell."""
    script = next((word for word in words if word.endswith((".py", ".sbatch", ".sh"))), None)
    ours = script is not None and script.startswith(("launchers/", "tuning/"))
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif words[0] == "sbatch":
        assert script is not None and Path(script).is_file(), words
    elif words[0] == "gkd-scale" or (ours and words[0] in ("python", "deepspeed", "torchrun")):
        parse(shlex.join(words))
    elif words[0] == "python" and words[1:2] == ["-m"]:
        assert importlib.util.find_spec(words[2]), words
    elif words[0] == "python":
        assert script is not None and Path(script).is_file(), words
    else:
        assert words[0] in OTHERS, words


@pytest.mark.usefixtures("checkout")
def test_a_wrong_command_would_be_found() -> None:
    from gkd_scale.errors import ConfigError

    with pytest.raises(ConfigError, match="unknown flag '--viewz'"):
        accept(shlex.split("gkd-scale cache-teacher --images x --image-size 8 --out y --viewz 2"))
    with pytest.raises(AssertionError):
        accept(["make", "coffee"])
    with pytest.raises(AssertionError):
        accept(["python", "benchmarks/nothing.py"])


@pytest.mark.parametrize(
    "page", sorted({*PAGES} - OUTPUTS), ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_commands_and_flags_in_the_text_exist(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8"))
    spans = re.findall(r"`([^`\n]+)`", text)
    for span in spans:
        if match := re.match(r"gkd-scale ([a-z][a-z-]*)", span):
            assert match[1] in COMMANDS, span
        if span.startswith(("--", "gkd-scale", "launchers/", "deepspeed")):
            unknown = set(re.findall(r"(?<!\S)--([a-z][\w.-]*)", span)) - flags()
            assert not unknown, f"{span}: {unknown}"


def flags() -> set[str]:
    """The long flags of all our parsers, and of the launchers."""
    if not _FLAGS:
        for cls in CONFIGS.values():
            parser = argparse.ArgumentParser()
            config._add_arguments(parser, cls, "")
            _FLAGS.update(flag.lstrip("-") for action in parser._actions for flag in action.option_strings)
    return _FLAGS | LAUNCHER_FLAGS


_FLAGS: set[str] = set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_in_a_page_compiles_and_names_what_there_is(page: Path) -> None:
    import gkd_scale

    for code in fences(page.read_text(encoding="utf-8"), "python"):
        compile(code, str(page), "exec")
        for name in re.findall(r"\bgkd_scale\.(\w+)", code):
            assert name in gkd_scale.__all__, name
