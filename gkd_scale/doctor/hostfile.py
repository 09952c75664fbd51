"""DeepSpeed's hostfile: a line ``host slots=N`` for each node."""

from __future__ import annotations

import re
from pathlib import Path

from gkd_scale.errors import ConfigError

_ROW = re.compile(r"(\S+)\s+slots=(\d+)")
_EXAMPLE = "write a line for each node, for example: node-1 slots=8"


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts to slots, in order; ConfigError, with file and line number, for what DeepSpeed would refuse."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(
            f"the hostfile {path} cannot be read: {error.strerror}", "check --hostfile"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"the hostfile {path} is not UTF-8", _EXAMPLE) from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _ROW.fullmatch(text)
        if match is None or int(match[2]) < 1:
            raise ConfigError(f"{path}, line {number}: '{text}' is not 'host slots=N'", _EXAMPLE)
        if match[1].startswith("-"):
            raise ConfigError(f"{path}, line {number}: '{match[1]}' is no name of a host", _EXAMPLE)
        if match[1] in hosts:
            raise ConfigError(f"{path}, line {number}: {match[1]} is there twice", "keep one of them")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ConfigError(f"the hostfile {path} names no host", _EXAMPLE)
    return hosts
