"""``gkd-scale``: runs the rows of :mod:`gkd_scale.command_table`."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Sequence

from gkd_scale import __version__
from gkd_scale.command_table import COMMANDS, Command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 done, 1 our fault or damage, 2 the user's mistake."""
    if "_ARGCOMPLETE" in os.environ:
        from gkd_scale.completion import complete

        complete()
    from gkd_scale import console

    arguments = list(sys.argv[1:] if argv is None else argv)
    return console.run(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    """The exit status of a command; raises GkdError."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"gkd-scale {__version__}")
        return 0
    from gkd_scale.config import parse
    from gkd_scale.memory import collector_paused, keep_freed

    keep_freed()
    command, argv = _find(arguments)
    cfg = parse(
        pkgutil.resolve_name(command.config),
        argv,
        prog=f"gkd-scale {command.name}",
        description=command.help,
        examples=command.examples,
    )
    with collector_paused(freeze=True):
        function = pkgutil.resolve_name(command.main)
    result = function(cfg)
    return int(result) if command.exit_status else 0


def _find(arguments: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """The command that ``arguments`` begin with, and the rest of them; ConfigError with the nearest name."""
    from gkd_scale.errors import ConfigError, nearest

    name, *rest = arguments
    if name not in COMMANDS or " " in name:
        names = [key for key in COMMANDS if " " not in key]
        raise ConfigError(f"gkd-scale has no command '{name}'", nearest(name, names) or "see --help")
    verbs = [verb for key in COMMANDS for first, _, verb in [key.partition(" ")] if verb and first == name]
    if not verbs or not rest or rest[0].startswith("-"):
        return COMMANDS[name], rest
    if rest[0] not in verbs:
        raise ConfigError(
            f"gkd-scale {name} has no '{rest[0]}'",
            nearest(rest[0], verbs) or f"choose one of: {', '.join(verbs)}",
        )
    return COMMANDS[f"{name} {rest[0]}"], rest[1:]


def _usage() -> str:
    commands = "\n".join(
        f"  {name:<15} {command.help}" for name, command in COMMANDS.items() if " " not in name
    )
    return f"""\
usage: gkd-scale COMMAND [options]

Distil a giant vision foundation model into a small one that still works where it was never trained.

commands:
{commands}

training:
  deepspeed launchers/stage1.py --ds-config zero2.json   distil a student from caches
  deepspeed launchers/stage2.py --ds-config zero2.json   train a segmentation head on it
  python tuning/search.py                                search its hyperparameters

gkd-scale COMMAND --help shows options and examples."""


if __name__ == "__main__":
    sys.exit(main())
