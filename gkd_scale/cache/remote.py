"""Caches on object storage: upload them, and train from them through a local copy of bounded size.

``push`` uploads a finished cache: each tar before its index, the manifest last, so that what exists
remotely is whole. :class:`Outbox` does the same while the cache is being built, and needs disk space for a
few shards only. :class:`Mirror` downloads: the reader asks for files by name, a missing file is fetched
whole (a training window touches a few shards at a time), and the least recently used tars are removed at the
limit.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gkd_scale import console
from gkd_scale.cache.certificate import PATTERN
from gkd_scale.cache.codecs.base import STATE
from gkd_scale.cache.config import PushConfig
from gkd_scale.cache.location import file_system, url_of
from gkd_scale.cache.manifest import CHECKSUM, MANIFEST, SHARDS, is_complete, read_shards
from gkd_scale.cache.plan import PLAN
from gkd_scale.cache.shard import tar_path
from gkd_scale.cache.spec import SPEC, read_spec
from gkd_scale.errors import CacheError
from gkd_scale.files import LOCK, hold, own_temporary, write_bytes


def main(cfg: PushConfig) -> None:
    """``gkd-scale push``: upload a cache, with a line for each file."""
    count = push(cfg.cache, cfg.to, lambda name: console.say(f"  {name}"))
    console.say(f"{count} files sent; {cfg.to} is complete")


def push(folder: Path, url: str, report: Callable[[str], None]) -> int:
    """Upload the finished cache ``folder`` to ``url``; returns the files sent. A second run sends the rest.

    CacheError if the cache is unfinished.
    """
    spec = read_spec(folder)
    if not is_complete(folder):
        raise CacheError(f"{folder} is unfinished", "run cache-teacher to its end, then push")
    read_shards(folder, spec)
    fs, root = _place(url_of(url))
    if not root:
        raise CacheError(f"{url} names no bucket or folder", "for example s3://bucket/proxy")
    tars = [tar_path(Path(), view, shard) for view, shard in spec.view_shards]
    shards = [path.as_posix() for tar in tars for path in (tar, tar.with_suffix(".parquet"))]
    small = [name for name in (SPEC, PLAN, STATE) if (folder / name).exists()]
    certificates = [path.name for path in sorted(folder.glob(PATTERN))]
    count = 0
    for name in [*small, *certificates, *shards, *_last_files(folder)]:
        target = f"{root}/{name}"
        if name.endswith(".tar") and _size(fs, target) == (folder / name).stat().st_size:
            continue
        try:
            _put(fs, folder / name, target)
        except Exception as error:  # each backend has errors of its own
            raise CacheError(
                f"{url} cannot be written: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
                "check the address, the credentials and the network; then the same command goes on",
            ) from error
        count += 1
        report(name)
    return count


def _place(url: str) -> tuple[Any, str]:
    """The file system of ``url``, and the folder in it."""
    fs, root = file_system(url)
    return fs, root.rstrip("/")


def _last_files(folder: Path) -> list[str]:
    """The files that are sent last; the manifest at the end, because a cache that has it is complete."""
    return [name for name in (CHECKSUM, SHARDS, MANIFEST) if (folder / name).exists()]


def _put(fs: Any, path: Path, target: str) -> None:
    """Upload a file, and make the folder that it needs."""
    fs.makedirs(target.rpartition("/")[0], exist_ok=True)
    fs.put_file(os.fspath(path), target)


def _size(fs: Any, path: str) -> int | None:
    """Bytes of a remote file; None if it does not exist."""
    try:
        return int(fs.info(path)["size"])
    except FileNotFoundError:
        return None


class Outbox:
    """A cache that is built in ``folder``, below ``home``, and lives at ``url``.

    ``begin`` uploads the spec, ``send`` a shard, tar before index, and drops the tar here; ``finish`` sends
    what is left, the manifest last. What was sent counts as built, also for a build on another machine,
    which first downloads the spec and the indexes.
    """

    def __init__(self, url: str, home: Path) -> None:
        self.url = url_of(url)
        self.folder = home / _digest(self.url)
        self._fs, self._root = _place(self.url)
        self._sizes = self._listing()
        for name in self._sizes:
            path = self.folder / name
            is_index = name.endswith(".parquet") and "/" in name
            if (is_index or name in (SPEC, STATE)) and not path.exists():
                write_bytes(path, bytes(self._fs.cat_file(f"{self._root}/{name}")))

    def sent_bytes(self, view: int, shard: int) -> int | None:
        """Bytes of a tar that was uploaded before this build began; None if it was not."""
        return self._sizes.get(tar_path(Path(), view, shard).as_posix())

    def begin(self) -> None:
        """Upload the spec, the plan and the codec's state."""
        for name in (STATE, PLAN, SPEC):
            if (self.folder / name).exists():
                self._upload(self.folder / name)

    def send(self, view: int, shard: int) -> None:
        """Upload a shard that was committed here."""
        tar = tar_path(self.folder, view, shard)
        self._upload(tar)
        self._upload(tar.with_suffix(".parquet"))
        tar.unlink()

    def finish(self) -> None:
        """Upload the shards that a killed build left here, then the manifest."""
        for tar in sorted(self.folder.glob("v*/shard-*.tar")):
            self.send(int(tar.parent.name[1:]), int(tar.stem.removeprefix("shard-")))
        for name in _last_files(self.folder):
            self._upload(self.folder / name)

    def _upload(self, path: Path) -> None:
        _put(self._fs, path, f"{self._root}/{path.relative_to(self.folder).as_posix()}")

    def _listing(self) -> dict[str, int]:
        """Names and bytes of the uploaded files, by one request."""
        try:
            files = self._fs.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        return {path[start:]: int(info["size"]) for path, info in files.items()}


def _digest(url: str) -> str:
    """A folder's name for a URL."""
    return hashlib.blake2b(url.encode(), digest_size=8).hexdigest()


class Mirror:
    """Files of a remote cache, downloaded when they are first read; at most ``limit`` bytes of tars stay.

    Safe for threads and for processes (ranks), which share the folder: one downloads a file and the others
    wait for it, and the limit is one for all. A file's time is that of its last use. What is being downloaded
    comes on top of the limit, a tar a rank.
    """

    def __init__(self, url: str, home: Path, limit: int) -> None:
        self.url = url_of(url)
        self.folder = home / _digest(self.url)
        self._limit = limit
        self._fs, self._root = _place(self.url)
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self.fetched = 0
        for name in (SPEC, SHARDS, CHECKSUM, STATE):
            self.fetch(name)
        if not (self.folder / SHARDS).exists():  # of an older format
            self.fetch(MANIFEST)

    def has(self, name: str) -> bool:
        """Whether the cache has the file ``name``, here or there."""
        return (self.folder / name).exists() or _size(self._fs, f"{self._root}/{name}") is not None

    def fetch(self, name: str) -> None:
        """Download ``name`` to ``folder`` if it exists and is not there yet; old tars make room for it."""
        with self._lock:
            busy = self._busy.setdefault(name, threading.Lock())
        with busy:
            path = self.folder / name
            if _touch(path):
                return
            remote = f"{self._root}/{name}"
            size = _size(self._fs, remote)
            if size is None:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(path.name + LOCK)
            with hold(lock, lambda _: None, CacheError):
                try:
                    if not _touch(path):
                        self._download(remote, path, size)
                finally:
                    lock.unlink(missing_ok=True)

    def _download(self, remote: str, path: Path, size: int) -> None:
        is_tar = path.suffix == ".tar"
        if is_tar:
            self._make_room(path, size)
        temporary = own_temporary(path)
        self._fs.get_file(remote, os.fspath(temporary))
        temporary.replace(path)
        self.fetched += 1
        if is_tar:
            self._make_room(path)  # for what other ranks downloaded meanwhile

    def _make_room(self, path: Path, size: int = 0) -> None:
        """Remove the least recently used tars but ``path`` until ``size`` bytes fit into the limit.

        A reader that has one of them open goes on reading it: the disk keeps it until it is closed.
        """
        with self._lock, hold(self.folder / f"mirror{LOCK}", lambda _: None, CacheError):
            tars = [(tar.stat(), tar) for tar in self.folder.glob("v*/*.tar")]
            total = size + sum(stat.st_size for stat, _ in tars)
            for stat, tar in sorted(tars, key=lambda item: item[0].st_mtime_ns):
                if total > self._limit and tar != path:
                    tar.unlink(missing_ok=True)
                    total -= stat.st_size


def _touch(path: Path) -> bool:
    """Whether a file exists; if so, its time of last use becomes now."""
    with suppress(PermissionError):
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
    return True
