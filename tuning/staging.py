"""Caches near the GPUs: each node copies a cache once to its own disk, whoever needs it first.

A source is a folder (a shared file system) or a URI that pyarrow knows (``s3://``, ``gs://``, ``file://``).
The copy is locked, made under a temporary name and renamed, so a killed node leaves nothing half done that
anybody would read.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gkd_scale.cache.manifest import MANIFEST
from gkd_scale.errors import CacheError
from gkd_scale.files import TEMPORARY


def is_uri(cache: str) -> bool:
    """Whether a cache is named by URI rather than by path."""
    return "://" in cache


def _filesystem(cache: str) -> Any:
    """pyarrow's (file system, path) of a path or URI; CacheError."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(cache if is_uri(cache) else Path(cache).resolve().as_uri())
    except (OSError, pa.ArrowException) as error:
        raise CacheError(f"{cache} cannot be opened: {error}", "check the URI and the credentials") from None


def require(cache: str) -> None:
    """CacheError unless there is a complete cache at a path or URI."""
    from pyarrow import fs

    system, path = _filesystem(cache)
    try:
        there = system.get_file_info(f"{path}/{MANIFEST}").type == fs.FileType.File
    except OSError as error:
        raise CacheError(f"{cache} cannot be read: {error}", "check the URI and the credentials") from None
    if not there:
        raise CacheError(
            f"there is no complete cache at {cache} (no {MANIFEST})", "'gkd-scale cache-teacher' makes one"
        )


def local_copy(cache: str, folder: Path) -> Path:
    """The node's own copy of ``cache`` under ``folder``, made now if it is not there."""
    from pyarrow import fs

    require(cache)
    system, path = _filesystem(cache)
    with system.open_input_stream(f"{path}/{MANIFEST}") as manifest:
        name = hashlib.sha256(manifest.read()).hexdigest()[:16]
    copy = folder / name
    with locked(folder / f"{name}.lock"):
        if not copy.is_dir():
            part = folder / (name + TEMPORARY)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            fs.copy_files(
                path, str(part), source_filesystem=system, destination_filesystem=fs.LocalFileSystem()
            )
            part.rename(copy)
    return copy


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for, then hold, a lock that dies with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
