"""The spec: what a cache holds. Equal specs mean equal bytes; a folder holds one spec for ever.

``cache.json`` is the spec, its hash, and the versions that wrote it. What does not change the content
(batch size, threads, device) is not part of it, so a build that ran out of memory goes on with smaller
batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from gkd_scale.cache.location import SCHEME
from gkd_scale.commands import shell
from gkd_scale.errors import CacheError, DamageError
from gkd_scale.files import write_json

FORMAT = 3
"""Version of the files of a new cache."""

OLDEST = 1
"""Version of caches whose shards are cut from the sorted list of images: read, and built to their end."""

SPEC = "cache.json"

_OPTIONAL = ("labels", "pixels")
"""Keys that are left out of the file if they are empty."""


@dataclass(frozen=True)
class Spec:
    """What decides every byte of a cache."""

    teacher: dict[str, Any]
    """The teacher's fingerprint."""
    dim: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    codec: str
    view: dict[str, Any]
    views: int
    seed: int
    images: int
    samples_per_shard: int
    plan: str
    """Hash of the plan: names and sizes of the images."""
    codec_state: str = ""
    """SHA-256 of ``codec.safetensors``, for codecs that are fitted."""
    format: int = FORMAT
    labels: dict[str, Any] = field(default_factory=dict)
    """``classes`` and ``palette`` of the stored labels; empty, and left out of the file, if there are none.

    ``absent``, if not empty: the classes that occur in no label. No shard depends on it, so it is no part
    of :meth:`identity`.
    """
    pixels: dict[str, str] = field(default_factory=dict)
    """``manifest``: SHA-256 of the manifest of the cache that stores the pixels; left out of the file, and
    empty, if this one does. ``path``: where that cache was, which is no part of :meth:`identity`.
    """

    @property
    def pixels_of(self) -> str | None:
        """SHA-256 of the manifest of the cache that stores the pixels; None if this one does."""
        return self.pixels.get("manifest")

    @property
    def images_flag(self) -> str:
        """What ``repair --images`` takes: the cache that stores the pixels, or FOLDER in place of a name."""
        return f"{SCHEME}{self.pixels['path']}" if self.pixels else "FOLDER"

    @property
    def shards(self) -> int:
        """Shards of one view."""
        return -(-self.images // self.samples_per_shard)

    @property
    def view_shards(self) -> list[tuple[int, int]]:
        """(view, shard) of all shards, a view after the other."""
        return list(product(range(self.views), range(self.shards)))

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON types."""
        values = {key: value for key, value in asdict(self).items() if key not in _OPTIONAL or value}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    def identity(self) -> dict[str, Any]:
        """What decides the shards' bytes and their meaning; JSON types."""
        values = self.to_dict()
        values.get("labels", {}).pop("absent", None)
        values.get("pixels", {}).pop("path", None)
        return values

    def hash(self) -> str:
        """SHA-256 of the canonical JSON of :meth:`identity`."""
        return digest(self.identity())


def write_spec(spec: Spec, folder: Path, made_with: Mapping[str, str]) -> None:
    """Write ``cache.json``. ``made_with`` names versions for the reader's information."""
    content = {"spec": spec.to_dict(), "spec_hash": spec.hash(), "made_with": dict(made_with)}
    write_json(folder / SPEC, {**content, "checksum": digest(content)})


def read_spec(folder: Path) -> Spec:
    """The spec of a cache. CacheError if there is no cache, DamageError if the file is not whole."""
    path = folder / SPEC
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        what = "is not a teacher cache (no cache.json)" if folder.is_dir() else "does not exist"
        raise CacheError(
            f"{folder} {what}", "make one with gkd-scale cache-teacher, or check the path"
        ) from None
    except NotADirectoryError:
        raise CacheError(f"{folder} is a file, not a teacher cache", "give the cache's folder") from None
    try:
        content = json.loads(text)
        if content.pop("checksum") != digest(content):
            raise ValueError("its checksum does not match its content")
        values = dict(content["spec"])
        version = values["format"]
        if version in range(OLDEST, FORMAT + 1):
            values["grid"], values["image_size"] = tuple(values["grid"]), tuple(values["image_size"])
            return Spec(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(
            f"{path} is damaged: {error}", f"see what is whole with: {shell('gkd-scale', 'verify', folder)}"
        ) from None
    raise CacheError(
        f"{path} has format {version}; this version reads formats {OLDEST} to {FORMAT}",
        "use the version of gkd-scale that wrote it, or make the cache again",
    )


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(json_bytes(value)).hexdigest()


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of all leaves that differ."""
    result: list[tuple[str, Any, Any]] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            result += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            result.append((f"{prefix}{key}", before, after))
    return result


def refuse_other(folder: Path, old: Spec, new: Spec, changed_images: str | None = None) -> None:
    """CacheError that lists the differences, unless ``new`` is what ``folder`` already holds.

    ``changed_images`` says how the images differ; '' if they are the same in another order.
    """
    changes = differences(old.identity(), new.identity())
    if not changes:
        return
    lines = [
        f"{key}: the cache has {json.dumps(before)}, asked for {json.dumps(after)}"
        for key, before, after in changes
        if changed_images is None or key not in ("plan", "images")
    ]
    if changed_images:
        lines.append(f"the image folder changed: {changed_images}")
    raise CacheError(
        f"{folder} holds a cache of another spec:\n    " + "\n    ".join(lines),
        "choose another --out, or repeat the options that made this cache",
    )
