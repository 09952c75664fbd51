"""Commands as one line that a shell takes as it is printed: our own programs, paths with any characters."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def shell(*command: object) -> str:
    """The line for a POSIX shell, quoted; a program of ours that the shell would not find, by its path."""
    program, *arguments = map(str, command)
    own = Path(sys.executable).parent / program
    if shutil.which(program) is None and own.is_file():
        program = str(own)
    return shlex.join([program, *arguments])


def script(folder: Path, name: str) -> Path:
    """``folder/name`` as it is reached from the working directory."""
    path = (folder / name).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
