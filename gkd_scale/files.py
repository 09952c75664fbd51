"""Files that are whole or not there: write under a temporary name, fsync, rename."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gkd_scale.errors import DamageError, RunError, UserError, disk_full

TEMPORARY = ".part"
"""Suffix of files that are being written; never read, removed when a command starts again."""


def own_temporary(path: Path) -> Path:
    """A temporary name of this process alone, for files that two workers may be writing at once."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{TEMPORARY}")


@contextmanager
def atomic(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` only when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out`` only when the block ends without an exception; yields its temporary path.

    Raises RunError if ``out`` exists already and is no empty folder, or if another process makes it.
    """

    def refuse() -> None:
        if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
            raise RunError(f"{out} exists already", "give another --out, or remove it")

    refuse()
    beside = out.with_name(f".{out.name}{TEMPORARY}")
    with claim(beside):
        folder = beside / "folder"
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        try:
            folder.mkdir()
            yield folder
            for path in folder.rglob("*"):
                _sync(path)
            refuse()
            folder.replace(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        beside.rmdir()
    sync_folder(out.parent)


def _exists(path: Path) -> bool:
    """Whether ``path`` exists; False also for a name that the file system does not take."""
    try:
        return path.exists()
    except OSError:
        return False


def empty(folder: Path) -> None:
    """Remove everything in ``folder``."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    """Make a file's bytes, or the names in a folder, survive a power cut."""
    if path.is_dir():
        sync_folder(path)
        return
    with open(path, "rb") as file:
        os.fsync(file.fileno())


# ------------------------------------------------------------------------------------------ locks

LOCK = ".lock"
"""A file in a folder that a command writes or wrote: the kernel's lock on it shows whether one does now."""
_TAKEN = (errno.EAGAIN, errno.EACCES)
_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks, such as some network mounts."""
_descriptors: set[int] = set()


@contextmanager
def claim(
    folder: Path, error: type[UserError] = RunError, wait: Callable[[], object] | None = None
) -> Iterator[None]:
    """Hold ``folder``, made if it is missing, for what this process writes there.

    If another process holds it, raise an ``error`` that names both, or call ``wait()`` and then wait for it.
    The end removes the lock, and the folders that this made if they are empty. Nodes exclude each other if
    the file system shares locks (NFS, Lustre with ``flock``); without locks, nothing is refused.
    """

    def busy(holder: str) -> None:
        if wait is not None:
            wait()
            return
        raise _busy(folder, holder, error)

    new_folders = [path for path in (folder, *folder.parents) if not _exists(path)]
    try:
        with ExitStack() as stack:
            while True:
                _make(folder, error)
                with suppress(FileNotFoundError):  # its last holder has removed the folder since
                    stack.enter_context(hold(folder / LOCK, busy, error))
                    break
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)  # still held: a process that waits opens a new one
    finally:
        for path in new_folders:
            with suppress(OSError):
                path.rmdir()


def require_claimable(folder: Path) -> None:
    """Raise what :func:`claim` would raise for ``folder`` now. Makes and changes nothing."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        raise RunError(f"{folder} is not a folder", "choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise _unwritable(folder / LOCK if place == folder else folder, error, RunError)
    with suppress(FileNotFoundError, PermissionError), open(folder / LOCK, "rb") as lock:
        if not _flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB):
            raise _busy(folder, _holder_text(lock.fileno()).partition("\n")[0], RunError)


def _busy(folder: Path, holder: str, error: type[UserError]) -> UserError:
    return error(f"another process is writing {folder}: {holder}", "wait for it, or choose another --out")


def _make(folder: Path, error: type[UserError]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise error(f"{folder} is not a folder", "choose another --out") from None
    except OSError as cause:
        raise _unwritable(folder, cause, error) from None


@contextmanager
def hold(path: Path, busy: Callable[[str], object], error: type[UserError] = RunError) -> Iterator[None]:
    """Hold the file ``path`` for this process; the kernel releases it however the process ends.

    If another process holds it, call ``busy(holder)``, which may raise; then wait. Forked processes do not
    hold it.
    """
    descriptor = _acquire(path, busy, error)
    try:
        yield
    finally:
        _release(descriptor)


@contextmanager
def share(path: Path, text: str, check: Callable[[str, str, str], object]) -> Iterator[None]:
    """Hold ``path`` together with other processes, unless ``check(holder, theirs, text)`` raises.

    ``text`` is one line that says what the processes must have in common; ``theirs`` is the first holder's.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _descriptors.add(descriptor)
    try:
        if _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _sign(descriptor, text)
            _flock(descriptor, fcntl.LOCK_SH)
        else:
            _flock(descriptor, fcntl.LOCK_SH)
            holder, _, first = _holder_text(descriptor).partition("\n")
            check(holder, first, text)
        yield
    finally:
        _release(descriptor)


def _acquire(path: Path, busy: Callable[[str], object], error: type[UserError]) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # for the caller, who made the folder: another process has removed it
            raise
        except OSError as cause:
            raise _unwritable(path, cause, error) from None
        _descriptors.add(descriptor)
        try:
            if not _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                busy(_holder_text(descriptor).partition("\n")[0])
                _flock(descriptor, fcntl.LOCK_EX)
            if _is_still(path, descriptor):
                _sign(descriptor)
                return descriptor
        except BaseException:
            _release(descriptor)
            raise
        _release(descriptor)


def _unwritable(path: Path, cause: OSError, error: type[UserError]) -> Exception:
    if disk_full(cause, path):
        return cause
    return error(f"{path} cannot be written: {cause.strerror}", "choose another --out")


def _flock(descriptor: int, operation: int) -> bool:
    """Whether this process has the lock, or the file system has none; False if another process has it."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in _UNKNOWN:
            raise
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether ``path`` is the file that was opened: its last holder may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sign(descriptor: int, text: str = "") -> None:
    """Write who holds the lock, for people."""
    program = Path(sys.argv[0] or "python").name
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} ({program})\n{text}".encode(), 0)


def _holder_text(descriptor: int) -> str:
    return os.pread(descriptor, 1 << 16, 0).decode(errors="replace") or "one that has not said its name"


def _release(descriptor: int) -> None:
    if descriptor in _descriptors:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """Release all locks in a forked child: its copies would keep them after its parent's end."""
    for descriptor in tuple(_descriptors):
        _release(descriptor)


os.register_at_fork(after_in_child=_let_go)


# ------------------------------------------------------------------------------------------ files


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, unlocked: bool = False) -> None:
    """Write ``value`` as indented JSON with sorted keys, whole or not at all.

    ``unlocked``: other processes may be writing it too; the last one's stays.
    """
    with atomic(path, own_temporary(path) if unlocked else None) as file:
        file.write((json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of ours; empty if there is no such file. DamageError if it holds none."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamageError(f"{path} is damaged: {error}", "remove it, then run the same command") from None
    if not isinstance(values, dict):
        raise DamageError(f"{path} holds no mapping", "remove it, then run the same command")
    return values


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut, if the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()
