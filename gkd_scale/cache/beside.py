"""What lies beside images and is none: labels, and files of other kinds.

A label is a PNG, and to a reader of images it is one. Where a folder or a tar holds both (``images/0.jpg``
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
"""Folders that operating systems and storage keep among a user's: thumbnails, forks, what was deleted."""

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
"""Fewer values, or colours, than these are a label's."""
_SHOWN = 6


class Suspects:
    """The images of a plan whose names say that they may be labels: their number, and some of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""
        self._some: list[tuple[int, str]] = []

    def add(self, paths: Iterable[str]) -> None:
        """Count more of them."""
        for path in paths:
            self.count += 1
            self.first = min(self.first or path, path)
            self._some.append((zlib.crc32(os.fsencode(path)), path))
        self._some = sorted(self._some)[:_LOOKED_AT]

    def merge(self, stored: Mapping[str, Any]) -> None:
        """Add those that :meth:`to_dict` gave."""
        if stored["count"]:
            self.count += stored["count"]
            self.first = min(self.first or stored["first"], stored["first"])
            self._some = sorted([*self._some, *map(tuple, stored["some"])])[:_LOOKED_AT]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"count": self.count, "first": self.first, "some": self._some}

    def are_labels(self, images: int, read: Callable[[str], bytes]) -> bool:
        """Whether they are labels beside others of ``images``: a few of them are opened."""
        return 0 < self.count < images and all(_is_label(read, path) for _, path in self._some)

    def note(self) -> str:
        """A line about labels that are left out."""
        return (
            f"labels beside the images, left out: {self.count}, the first is {on_a_line(self.first)} "
            f"(by their names, and by {len(self._some)} that were opened)"
        )


def kinds(others: Counter[str]) -> str:
    """``2 .cls, 1 .gif``: how many of each ending, most first."""
    shown = others.most_common(_SHOWN)
    rest = others.total() - sum(count for _, count in shown)
    return ", ".join(f"{count} {on_a_line(kind)}" for kind, count in shown) + (
        f", {rest} others" if rest else ""
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none that a user looks at."""
    return name.startswith(".") or name in _SYSTEM


def is_system_file(name: str) -> bool:
    """Whether Windows keeps a file of this name in a user's folders."""
    return name.lower() in _SYSTEM_FILES


def suspicious(paths: Sequence[str]) -> list[bool]:
    """Which of the images of one folder or source have the name of a label.

    By a word in it, or as the PNG beside a JPEG of one name.
    """
    lossless = [path[-4:].lower() in _LOSSLESS for path in paths]
    if not any(lossless):
        return lossless
    photos = {path.rpartition(".")[0] for path, other in zip(paths, lossless, strict=True) if not other}
    return [
        maybe and bool(_WORDS.search(path) or path.rpartition(".")[0] in photos)
        for path, maybe in zip(paths, lossless, strict=True)
    ]


def _is_label(read: Callable[[str], bytes], name: str) -> bool:
    """Whether a file has few values, as labels have; not if it cannot be read."""
    try:
        with Image.open(io.BytesIO(read(name))) as image:
            if image.mode in ("RGB", "RGBA"):
                return image.getcolors(_FEW) is not None
            return len(np.unique(np.asarray(image))) <= _FEW
    except Exception:  # decoders raise nearly anything; the build says why
        return False
