"""Every kind of odd image and path that a folder may hold, and what becomes of each.

``python -m tests.cache.bad_input`` builds a cache of all of them and writes ``shards/INPUTS.md``;
``test_bad_input.py`` does the same and compares.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from gkd_scale.cache.build import build
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.shard import parse_index

from .support import TinyTeacher, config

TABLE = Path(__file__).parents[2] / "shards" / "INPUTS.md"


def photo(width: int = 90, height: int = 70) -> Image.Image:
    small = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif_photo() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(photo(), "JPEG", exif=exif)


def frames(format: str) -> bytes:
    others = [Image.new("RGB", (40, 30), color) for color in ("lime", "blue")]
    return encode(Image.new("RGB", (40, 30), "red"), format, save_all=True, append_images=others)


def clear() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def flip(data: bytes) -> bytes:
    copy = bytearray(data)
    copy[len(data) // 2] ^= 255
    return bytes(copy)


def grey(dtype: str, scale: float) -> Image.Image:
    return Image.fromarray((np.asarray(photo().convert("L"), np.float64) * scale).astype(dtype))


def unit_image() -> Image.Image:
    return Image.fromarray(np.linspace(-1, 1, 6300, dtype=np.float32).reshape(70, 90))


def files() -> dict[str, tuple[str, bytes]]:
    """``{kind: (name, content)}`` of what is a regular file."""
    jpeg, whole = encode(photo(), "JPEG"), encode(photo(), "PNG")
    webp = encode(photo(), "WEBP")
    return {
        "JPEG": ("jpeg.jpg", jpeg),
        "JPEG, grey": ("grey.jpg", encode(photo().convert("L"), "JPEG")),
        "JPEG, CMYK": ("cmyk.jpg", encode(photo().convert("CMYK"), "JPEG")),
        "JPEG, progressive": ("progressive.jpg", encode(photo(), "JPEG", progressive=True)),
        "JPEG with EXIF orientation": ("turned.jpg", exif_photo()),
        "JPEG with a broken EXIF block": (
            "exif.jpg",
            encode(photo(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff rubbish"),
        ),
        "JPEG with rubbish after its end": ("trailing.jpg", jpeg + b"rubbish" * 9),
        "JPEG with several pictures (MPO)": ("mpo.jpg", frames("MPO")),
        "JPEG named .PNG": ("wrong.PNG", jpeg),
        "PNG, palette": ("palette.png", encode(photo().quantize(16), "PNG")),
        "PNG, palette with transparency": ("p-alpha.png", encode(clear().quantize(16), "PNG")),
        "PNG, RGBA": ("rgba.png", encode(clear(), "PNG")),
        "PNG, grey with alpha": ("la.png", encode(clear().convert("LA"), "PNG")),
        "PNG with a transparent colour": ("trns.png", encode(photo(), "PNG", transparency=(1, 2, 3))),
        "PNG, 1 bit": ("bit.png", encode(photo().convert("1"), "PNG")),
        "PNG, 16-bit grey": ("grey16.png", encode(grey("uint16", 257), "PNG")),
        "PNG, 16-bit RGB": (
            "rgb16.png",
            png(2, 2, 16, 2, 2 * (b"\0" + bytes(range(244, 256)))),
        ),
        "PNG, 16-bit grey that never exceeds 12 bits": ("grey12.png", encode(grey("uint16", 16), "PNG")),
        "PNG, 16-bit RGB that never exceeds 10 bits": (
            "rgb10.png",
            png(2, 2, 16, 2, 2 * (b"\0" + bytes([3, 255] * 6))),
        ),
        "PNG, animated": ("animated.png", frames("PNG")),
        "PNG of 1x1 pixels": ("one.png", encode(photo(1, 1), "PNG")),
        "PNG of 3000x1 pixels": ("line.png", encode(photo(3000, 1), "PNG")),
        "GIF, animated, named .png": ("gif.png", frames("GIF")),
        "WebP": ("webp.webp", webp),
        "WebP, animated": ("animated.webp", frames("WEBP")),
        "WebP with alpha": ("alpha.webp", encode(clear(), "WEBP", lossless=True)),
        "TIFF, several pages": ("pages.tiff", frames("TIFF")),
        "TIFF, 16-bit grey": ("grey16.tif", encode(grey("uint16", 257), "TIFF")),
        "TIFF, floats to 1": ("float.tif", encode(grey("float32", 1 / 255), "TIFF")),
        "TIFF, floats to 255": ("float255.tif", encode(grey("float32", 1), "TIFF")),
        "TIFF, floats from -1 to 1": ("normalised.tif", encode(unit_image(), "TIFF")),
        "TIFF, integers of 32 bits": ("int32.tif", encode(grey("int32", 70000), "TIFF")),
        "TIFF, CMYK": ("cmyk.tif", encode(photo().convert("CMYK"), "TIFF")),
        "BMP": ("bmp.bmp", encode(photo(), "BMP")),
        "BMP, palette": ("palette.bmp", encode(photo().quantize(16), "BMP")),
        "a name with spaces and a line break": ("a b\nc.jpg", jpeg),
        "a name in another script": ("кошка-猫.jpg", jpeg),
        "a name that is not Unicode": (os.fsdecode(b"caf\xe9.jpg"), jpeg),
        "an empty file": ("empty.jpg", b""),
        "text": ("text.jpg", b"no image at all"),
        "zeros": ("zeros.png", bytes(1000)),
        "an HTML page saved as .jpg": ("page.jpg", b"<!DOCTYPE html><html>404</html>"),
        "SVG named .png": ("svg.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        "a gzipped PNG": ("gzip.png", gzip.compress(whole, mtime=0)),
        "JPEG, header only": ("header.jpg", jpeg[:20]),
        "JPEG, cut in half": ("cut.jpg", jpeg[: len(jpeg) // 2]),
        "PNG, cut in half": ("cut.png", whole[: len(whole) // 2]),
        "PNG, one byte flipped": ("flipped.png", flip(whole)),
        "PNG of 0x0 pixels": ("nothing.png", png(0, 0, 8, 2, b"")),
        "PNG that claims 60000x60000 pixels": ("bomb.png", png(60000, 60000, 8, 2, b"\0" * 100)),
        "WebP, cut in half": ("cut.webp", webp[: len(webp) // 2]),
        "BMP, cut": ("cut.bmp", encode(photo(), "BMP")[:200]),
        "TIFF, cut": ("cut.tif", encode(photo(), "TIFF")[:300]),
        "a hidden file": (".hidden.jpg", jpeg),
        "another extension": ("movie.gif", frames("GIF")),
        "no extension": ("noextension", jpeg),
        "a file in a hidden folder": (".cache/inside.jpg", jpeg),
        "a file deep in folders": ("a/b/c/deep.jpg", jpeg),
    }


PATHS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a folder named .jpg": ("folder.jpg", lambda path: path.mkdir()),
    "a link to an image": ("link.jpg", lambda path: path.symlink_to("jpeg.jpg")),
    "a link to nowhere": ("dangling.jpg", lambda path: path.symlink_to("nowhere.jpg")),
    "a link to itself": ("loop.jpg", lambda path: path.symlink_to("loop.jpg")),
    "a link to the folder above": ("above", lambda path: path.symlink_to("..", True)),
    "a named pipe": ("pipe.jpg", os.mkfifo),
}


def outcomes(folder: Path) -> dict[str, str]:
    """Make all of them, build a cache, and say what became of each: ``{kind: outcome}``."""
    images, out = folder / "images", folder / "cache"
    names = {kind: name for kind, (name, _) in files().items()} | {k: name for k, (name, _) in PATHS.items()}
    for name, content in files().values():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(content)
    for name, make in PATHS.values():
        make(images / name)
    build(config(images, out, views=1, workers=1), TinyTeacher(), quiet=True)
    facts = {fact["path"]: fact["source"] for fact in read_records(out)}
    rows = {row["path"]: row for row in pq.read_table(out / "manifest.parquet").to_pylist()}
    return {
        kind: _outcome(os.fsencode(name).decode("utf-8", "backslashreplace"), rows, facts)
        for kind, name in names.items()
    }


def read_records(out: Path) -> list[dict[str, Any]]:
    """The ``{sid}.json`` of all samples of view 0."""
    records = []
    for shard in range(len(Cache.open(out).shard_sizes)):
        tar = out / f"v00/shard-{shard:06d}.tar"
        data = tar.read_bytes()
        members = parse_index(tar.with_suffix(".parquet").read_bytes()).members
        places = [(m.offset, m.offset + m.bytes) for m in members if m.member == "json"]
        records += [json.loads(data[start:stop]) for start, stop in places]
    return records


def _outcome(name: str, rows: dict[str, Any], facts: dict[str, Any]) -> str:
    if name not in rows:
        inside = [path for path in rows if path.startswith(f"{name}/")]
        return f"entered: {len(inside)} images" if inside else "not looked at"
    if rows[name]["status"] == "error":
        return f"left out: {rows[name]['error']}"
    source = facts[name]
    height, width = source.pop("size")
    text = f"used: {source.pop('format')}, {source.pop('mode')}, {width}x{height}"
    return text + "".join(f", {key} {value}" for key, value in sorted(source.items()))


def table(rows: dict[str, str]) -> str:
    """The outcomes as a Markdown page."""
    lines = [f"| {kind} | {outcome} |" for kind, outcome in rows.items()]
    return "\n".join(
        [
            f"# {len(rows)} kinds of input, and what becomes of each",
            "",
            "Made by `python -m tests.cache.bad_input` from a real build; a test compares. *used* is what",
            "`{sid}.json` says of the source (format, mode, width x height); *left out* is the reason in",
            "`manifest.parquet`. Nothing here stops a build. Pixels become upright 8-bit RGB: EXIF",
            "orientation is applied, alpha lies over black, 16 bits become 8, the first frame is taken.",
            "Colour profiles and gamma are not applied.",
            "",
            "| input | outcome |",
            "|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        TABLE.write_text(table(outcomes(Path(temporary))), encoding="utf-8")
    sys.stdout.write(TABLE.read_text(encoding="utf-8"))
