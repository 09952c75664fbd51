"""Writing datasets in miniature, PNGs of several 16-bit channels (which Pillow cannot write) too."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def write_image(path: Path, size: tuple[int, int] = (6, 8), seed: int = 0) -> Path:
    """A random RGB image of ``size`` (H, W)."""
    return write_array(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def write_array(path: Path, pixels: npt.NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_values(path: Path, values: list[int], size: tuple[int, int] = (6, 8)) -> npt.NDArray[np.uint8]:
    """A one-channel label in which ``values`` follow each other; returns it."""
    array = np.resize(np.array(values, np.uint8), size)
    write_array(path, array)
    return array


def write_png16(path: Path, samples: npt.NDArray[np.uint16]) -> Path:
    """(H, W, 3 or 4) samples as a PNG of 16 bits a channel; rows take turns in three of PNG's filters."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, width, 2 * channels).astype(np.int64)
    data = b""
    for index, row in enumerate(rows):
        kind = index % 3
        before = {0: np.zeros_like(row), 1: np.roll(row, 1, axis=0), 2: rows[index - 1]}[kind].copy()
        if kind == 1:
            before[0] = 0
        data += bytes([kind]) + ((row - before) % 256).astype(np.uint8).tobytes()
    return write_png(path, (height, width), 16, {3: 2, 4: 6}[channels], data)


def write_tiff(
    path: Path,
    samples: npt.NDArray[Any],
    *,
    order: str = "<",
    planes: bool = False,
    compress: bool = False,
    tags: dict[int, list[int]] | None = None,
) -> Path:
    """(H, W) or (H, W, C) samples as a TIFF as Pillow cannot write it.

    ``order`` is the byte order, ``planes`` puts one channel behind the other, ``compress`` compresses;
    ``tags`` are more, or other, of TIFF's.
    """
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    array = samples.astype(samples.dtype.newbyteorder(order))
    strips = [array[..., each].tobytes() for each in range(channels)] if planes else [array.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if compress else strips
    places = [8 + sum(map(len, strips[:index])) for index in range(len(strips))]
    entries = {
        256: [samples.shape[1]],
        257: [samples.shape[0]],
        258: [8 * samples.itemsize] * channels,
        259: [8 if compress else 1],
        262: [2 if channels == 3 else 1],
        273: places,
        277: [channels],
        278: [samples.shape[0]],
        279: list(map(len, strips)),
        284: [2 if planes else 1],
        339: [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * channels,
        **(tags or {}),
    }
    data = b"".join(strips)
    data += bytes(len(data) % 2)
    directory, extra = struct.pack(f"{order}H", len(entries)), b""
    after = 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, values in sorted(entries.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        place = content if len(values) == 1 else struct.pack(f"{order}I", after + len(extra))
        extra += content if len(values) > 1 else b""
        directory += struct.pack(f"{order}HHI", tag, 4, len(values)) + place
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(mark + struct.pack(f"{order}I", 8 + len(data)) + data + directory + bytes(4) + extra)
    return path


def write_grey(path: Path, values: npt.NDArray[Any], bits: int, clear: int | None = None) -> Path:
    """A greyscale PNG of 1, 2 or 4 bits, which Pillow cannot write; the value ``clear`` is transparent."""
    per_byte = 8 // bits
    grid = np.pad(values, ((0, 0), (0, -values.shape[1] % per_byte)))
    shifts = bits * np.arange(per_byte)[::-1]
    rows = (grid.reshape(len(values), -1, per_byte) << shifts).sum(2).astype(np.uint8)
    key = b"" if clear is None else struct.pack(">H", clear)
    return write_png(path, values.shape, bits, 0, b"".join(b"\0" + row.tobytes() for row in rows), key)


def write_png(
    path: Path, size: tuple[int, ...], bits: int, kind: int, data: bytes, clear: bytes = b""
) -> Path:
    """A PNG of ``size`` (H, W) and colour type ``kind``; ``data`` are its rows with their filters.

    ``clear`` is what the chunk of the transparent colour holds.
    """
    header = struct.pack(">IIBBBBB", size[1], size[0], bits, kind, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + (_chunk(b"tRNS", clear) if clear else b"")
        + _chunk(b"IDAT", zlib.compress(data))
        + _chunk(b"IEND")
    )
    return path


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
