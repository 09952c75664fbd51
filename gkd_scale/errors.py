"""The error tree. Every message names the file, the value, and what to do next.

::

    GkdError                exit code 1: our fault
    ├── UserError           exit code 2: the user's mistake, or the user's machine
    │   ├── ConfigError     a key, a type, a flag, a DeepSpeed JSON
    │   ├── DataError       images, labels, folders
    │   ├── CacheError      a cache that cannot be used: unfinished, another spec, another teacher
    │   ├── ModelError      a model name, weights, a grid
    │   ├── RunError        a run folder that holds something else
    │   └── DiskFullError   no space left
    └── DamageError         exit code 1: bytes on disk are not what was written

Commands raise these and nothing else for what a user can cause; ``gkd_scale.console.run`` turns
them into one red line and the exit code. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class GkdError(Exception):
    """Base of all errors of this project. ``exit_code`` is the process's exit status.

    ``on_rank`` is the number of the rank that alone has the error, and so must print it; None for an error
    that all ranks have, which rank 0 prints.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", *, on_rank: int | None = None) -> None:
        super().__init__(f"{message}\n  → {hint}" if hint else message)
        self.message = message
        self.hint = hint
        self.on_rank = on_rank


class UserError(GkdError):
    """The user's mistake, or something on the user's machine that only the user can mend."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration key, type, flag or DeepSpeed JSON that cannot be used."""


class DataError(UserError):
    """Images, labels or folders that cannot be used."""


class CacheError(UserError):
    """A teacher cache that cannot be used as it is."""


class ModelError(UserError):
    """A model name, weights file or token grid that does not fit."""


class RunError(UserError):
    """A run folder that holds something else than this run."""


class DiskFullError(UserError):
    """No space left where output goes."""


class DamageError(GkdError):
    """The bytes on disk differ from the bytes that were written."""


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.5) -> str:
    """'Did you mean …?' for ``name`` among ``candidates``; the empty string if none of them is near."""
    names = list(candidates)
    same = [other for other in names if other.lower() == name.lower()]
    best = same or difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"did you mean '{best[0]}'?" if best else ""


def short(text: str, most: int = 60) -> str:
    """``text``, cut to ``most`` characters if it is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def one_line(error: Exception) -> str:
    """An exception's text on one line; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def disk_full(error: OSError, where: object) -> DiskFullError | None:
    """A :class:`DiskFullError` if ``error`` says that the disk (or quota) is full, else None."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFullError(
            f"no space left while writing {where} ({error.strerror})",
            "free space or choose another --out, then run the same command again: it goes on",
        )
    return None


_OF_THE_SYSTEM = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV),
)
"""Error numbers of paths that cannot be used, and of disks and mounts that have gone."""


def refusal(error: OSError) -> UserError | None:
    """The UserError for a path that only the user can mend; None for an error that may be our fault."""
    path = error.filename2 or error.filename
    if error.errno in _OF_THE_SYSTEM and path:
        return UserError(f"{path}: {error.strerror}", "check the path, its permissions and its disk")
    return disk_full(error, error.filename or "output")
