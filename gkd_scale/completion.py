"""``gkd-scale completion``: TAB completes commands, flags, choices and files in bash, zsh and fish.

The script that a shell loads comes from argcomplete. At each TAB it runs ``gkd-scale`` with the typed line in
``COMP_LINE``, and :func:`complete` answers. The script names no option: it stays valid when options change.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import argcomplete
from argcomplete.shell_integration import shellcode

from gkd_scale.command_table import COMMANDS
from gkd_scale.config import _add_arguments, option

SHELLS = ("bash", "zsh", "fish")


@dataclass
class CompletionConfig:
    """Print the script that makes a shell complete ``gkd-scale``."""

    shell: str = option(help="the shell", positional=True, choices=SHELLS)


def main(cfg: CompletionConfig) -> None:
    """Print the script of a shell."""
    print(shellcode(["gkd-scale"], shell=cfg.shell))


def complete() -> None:
    """Answer a TAB: write the words that may follow ``COMP_LINE`` to the shell's script, and exit."""
    words = os.environ["COMP_LINE"].split()[1:]
    argcomplete.autocomplete(_parser(words), always_complete_options="long")


def _parser(words: list[str]) -> argparse.ArgumentParser:
    """All commands. Only the one in ``words`` has its options: to import all would make TAB slow."""
    parser = argparse.ArgumentParser("gkd-scale")
    parser.add_argument("-V", "--version", action="version")
    groups = {"": parser.add_subparsers()}
    for name, command in COMMANDS.items():
        first, _, verb = name.rpartition(" ")
        child = groups[first].add_parser(verb, help=command.help)
        if any(other.startswith(f"{name} ") for other in COMMANDS):
            groups[name] = child.add_subparsers()
        if words[: len(name.split())] == name.split():
            child.add_argument("--config", type=Path)
            _add_arguments(child, pkgutil.resolve_name(command.config), "")
    return parser
