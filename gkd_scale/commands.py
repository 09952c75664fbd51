"""Commands as one line to paste into a shell, whatever characters their paths have."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path


def shell(*command: object) -> str:
    """The quoted line for a POSIX shell; a program of this environment that is not on PATH, by its path."""
    program, *arguments = map(_word, command)
    file = Path(sys.executable).parent / program
    if shutil.which(program) is None and file.is_file():
        program = str(file)
    return shlex.join([program, *arguments])


def _word(part: object) -> str:
    """A word of a command. A path that begins with '-' would be taken for a flag."""
    return f"./{part}" if isinstance(part, Path) and str(part).startswith("-") else str(part)


def flag(name: str, value: object) -> list[str]:
    """A flag with its value, several values, or KEY=VALUE pairs, as words; none for None, () and {}."""
    if isinstance(value, dict):
        value = [f"{key}={json.dumps(entry)}" for key, entry in value.items()]
    values = value if isinstance(value, (list, tuple)) else () if value is None else (value,)
    return [name, *map(_word, values)] if values else []


def script(folder: Path, name: str) -> Path:
    """``folder/name``, relative to the working directory if it is inside, else absolute."""
    path = (folder / name).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
