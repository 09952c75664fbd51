"""``gkd-scale make-data``: the embedded scenes as files that every other command reads.

::

    OUT/proxy/NNNNN.png                       unlabelled, for task-agnostic distillation
    OUT/source/{train,val}/images|labels/     the source domain
    OUT/unseen_*/images|labels/               for testing only
    OUT/**/classes.txt                        beside every images/ and labels/
    OUT/data.json                             written last: the settings; if it exists, the data is complete

Each file appears whole or not at all, and its bytes depend on the settings alone, so an
interrupted command goes on where it stopped. Until the end the settings are in ``making.json``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from gkd_scale import files, scenes
from gkd_scale.errors import ConfigError, DataError
from gkd_scale.types import Size, UInt8Array

MANIFEST = "data.json"
_MARK = "making.json"
_LEAST = 32


def write_data(
    out: Path,
    *,
    size: Size = scenes.SIZE,
    proxy: int = 600,
    train: int = 200,
    val: int = 50,
    test: int = 40,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Write the embedded data under ``out`` and return what ``data.json`` says.

    ``size`` is (H, W) in pixels; ``proxy``, ``train`` and ``val`` count images, ``test`` the images of
    each unseen domain. ``progress(done, total)`` is called after each image. Files that exist and are
    whole are kept. Raises ConfigError for impossible counts or sizes, and DataError if ``out`` holds
    other data or data of other settings.
    """
    settings = _settings(size, proxy, train, val, test, seed)
    _claim(out, settings)
    items = [(folder, number) for folder, count in settings["counts"].items() for number in range(count)]
    for done, (folder, number) in enumerate(items, 1):
        _write_item(out, folder, number, size, seed)
        if progress is not None:
            progress(done, len(items))
    for folder in settings["counts"]:
        if folder != "proxy":
            _write_once(out / folder / "classes.txt", "\n".join(scenes.CLASSES) + "\n")
    _write_once(out / MANIFEST, json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (out / _MARK).unlink(missing_ok=True)
    return settings


def _settings(size: Size, proxy: int, train: int, val: int, test: int, seed: int) -> dict[str, Any]:
    """All settings that decide the bytes, JSON-serialisable; the content of ``data.json``."""
    counts = {"proxy": proxy, "source/train": train, "source/val": val}
    counts.update(dict.fromkeys(scenes.UNSEEN, test))
    for folder, count in counts.items():
        if count < 1:
            raise ConfigError(f"{folder}: {count} images", "ask for at least one of each")
        if count > len(scenes.SPLITS["train"]):
            raise ConfigError(f"{folder}: {count} images", f"at most {len(scenes.SPLITS['train'])}")
    if min(size) < _LEAST:
        raise ConfigError(f"image size {size[0]}x{size[1]}", f"both sides must be at least {_LEAST} pixels")
    return {
        "generator": scenes.GENERATOR,
        "size": list(size),
        "seed": seed,
        "counts": counts,
        "classes": list(scenes.CLASSES),
        "palette": [list(colour) for colour in scenes.PALETTE],
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings to ``out``, or compare them with those there; DataError if it holds other files."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file", "name a folder that does not exist yet")
    for name in (MANIFEST, _MARK):
        if (out / name).is_file():
            _require_same(out / name, settings)
            return
    if out.is_dir() and any(not path.name.endswith((files.TEMPORARY, files.LOCK)) for path in out.iterdir()):
        raise DataError(
            f"{out} holds files that make-data did not write", "name an empty or a new folder for the data"
        )
    files.write_json(out / _MARK, settings)


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read: {error}", "remove the folder and make the data again"
        ) from None
    for key, value in settings.items():
        present = content.get(key) if isinstance(content, dict) else None
        if present != value:
            raise DataError(
                f"{path.parent} holds other data: {key} is {present} in {path.name}, asked is {value}",
                "name another folder, use the same settings, or remove the folder",
            )


def _write_item(out: Path, folder: str, number: int, size: Size, seed: int) -> None:
    """Write picture ``number`` of ``folder``, which is "proxy" or has labels beside its images."""
    name = f"{number:05d}.png"
    kinds = ("",) if folder == "proxy" else ("images", "labels")
    paths = [out / folder / kind / name for kind in kinds]
    if all(_is_whole(path, size) for path in paths):
        return
    if folder == "proxy":
        pictures: tuple[UInt8Array, ...] = (scenes.render_proxy(number, size, seed),)
    else:
        domain, _, split = folder.partition("/")
        first = scenes.SPLITS[split].start if split else 0
        pictures = scenes.render(domain, first + number, size, seed)
    for path, pixels in zip(paths, pictures, strict=True):
        files.write_bytes(path, _png(pixels))


def _write_once(path: Path, text: str) -> None:
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        files.write_text(path, text)


def _is_whole(path: Path, size: Size) -> bool:
    """Whether ``path`` is a PNG of this size with right checksums."""
    try:
        with Image.open(path) as image:
            fits = (image.height, image.width) == tuple(size)
            image.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return fits


def _png(pixels: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
