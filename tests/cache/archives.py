"""Tars as people have them, member by member."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Member = tuple[str, bytes | str | None]
"""A name with its bytes, with what it is a symbolic link to, or None for a hard link (``name<target``)."""


def picture(seed: int, size: tuple[int, int] = (40, 56)) -> bytes:
    """A smooth random JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def tar_of(members: Iterable[Member], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of ``members``, with its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            elif content is None:
                info.name, _, info.linkname = name.partition("<")
                info.type = tarfile.LNKTYPE
                tar.addfile(info)
            else:
                info.linkname, info.type = content, tarfile.SYMTYPE
                tar.addfile(info)
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[Member], format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(members, format))
    return path
