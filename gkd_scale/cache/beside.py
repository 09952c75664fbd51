"""Files beside images that are no images: labels, and files of other kinds.

A label is a PNG, and to a reader of images it is one. If a folder or a tar holds both (``images/0.jpg``
and ``labels/0.png``, ``0.jpg`` and ``0.seg.png``), the teacher would be asked for features of masks. Names
say which files may be labels; some of them are opened, and all are left out if these look like labels.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gkd_scale.cache.location import on_a_line

_SYSTEM = frozenset({"@eaDir", "__MACOSX", "$RECYCLE.BIN", "#recycle", "System Volume Information"})
"""Folders of operating systems and storage among a user's: thumbnails, forks, deleted files."""

_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})
_LOSSLESS = frozenset({".png", ".tif", "tiff", ".bmp"})
"""The last four letters of names of files that may be labels."""
_WORDS = re.compile(
    r"(?:^|[/._-])(?:labels?|label_?ids|label_?train_?ids|masks?|annotations?|ann|ann_dir|gt|gtfine|gtcoarse|"
    r"ground_?truth|segm?|segmentations?|segmentationclass(?:aug)?|segmentationobject|semantic|instances?|"
    r"instance_?ids|panoptic)(?=[/._-])",
    re.IGNORECASE,
)
_LOOKED_AT = 8
_FEW = 64
"""A file with at most so many values, or colours, is a label."""
_LIMIT = 6


class Suspects:
    """The images of a plan whose names say that they may be labels: their number, and some of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""
        self._some: list[tuple[int, str]] = []

    def add(self, paths: Iterable[str]) -> None:
        """Count more images."""
        for path in paths:
            self.count += 1
            self.first = min(self.first or path, path)
            self._some.append((zlib.crc32(os.fsencode(path)), path))
        self._some = sorted(self._some)[:_LOOKED_AT]

    def merge(self, suspects: Mapping[str, Any]) -> None:
        """Add those of another object, which its :meth:`to_dict` returned."""
        if suspects["count"]:
            self.count += suspects["count"]
            self.first = min(self.first or suspects["first"], suspects["first"])
            self._some = sorted([*self._some, *map(tuple, suspects["some"])])[:_LOOKED_AT]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"count": self.count, "first": self.first, "some": self._some}

    def are_labels(self, images: int, read: Callable[[str], bytes]) -> bool:
        """Whether they are labels among a plan's ``images``: a few of them are opened."""
        return 0 < self.count < images and all(_is_label(read, path) for _, path in self._some)

    def note(self) -> str:
        """A line about labels that are left out."""
        return (
            f"labels beside the images, left out: {self.count}, the first is {on_a_line(self.first)} "
            f"(by their names, and by {len(self._some)} that were opened)"
        )


def kinds(others: Counter[str]) -> str:
    """``2 .cls, 1 .gif``: how many of each ending, most first."""
    common = others.most_common(_LIMIT)
    rest = others.total() - sum(count for _, count in common)
    return ", ".join(f"{count} {on_a_line(kind)}" for kind, count in common) + (
        f", {rest} others" if rest else ""
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a folder of :data:`_SYSTEM`."""
    return name.startswith(".") or name in _SYSTEM


def is_system_file(name: str) -> bool:
    """Whether Windows keeps a file of this name in a user's folders."""
    return name.lower() in _SYSTEM_FILES


def suspicious(paths: Sequence[str]) -> list[bool]:
    """Whether each image of one folder or source has the name of a label.

    It has if a word in the name says so, or if it is the PNG beside a JPEG of the same name.
    """
    lossless = [path[-4:].lower() in _LOSSLESS for path in paths]
    if not any(lossless):
        return lossless
    photos = {path.rpartition(".")[0] for path, flag in zip(paths, lossless, strict=True) if not flag}
    return [
        maybe and bool(_WORDS.search(path) or path.rpartition(".")[0] in photos)
        for path, maybe in zip(paths, lossless, strict=True)
    ]


def _is_label(read: Callable[[str], bytes], name: str) -> bool:
    """Whether a file has few values, as labels have; False if it cannot be read."""
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            if image.mode in ("RGB", "RGBA"):
                return image.getcolors(_FEW) is not None
            return len(np.unique(np.asarray(image))) <= _FEW
    except Exception:  # decoders raise nearly anything; the build says why
        return False
