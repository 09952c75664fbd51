"""A folder of images and labels: ``images/*`` and ``labels/*.png`` with the same stems.

Label values are class ids, 255 is ignored. Three optional files, read by every command alike:
``classes.txt`` holds one class name a line (without it the classes are 0 up to the greatest value found);
``ignore.txt`` more label values that are ignored; ``absent.txt`` classes that occur in no label, so that a
mean IoU leaves them out and says so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from gkd_scale import text
from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.adapter import Adapter
from gkd_scale.segment.datasets.facts import Facts, facts_of
from gkd_scale.segment.datasets.labels import (
    MOST_CLASSES,
    Encoding,
    LabelSet,
    default_palette,
    identity,
    read_stored,
)
from gkd_scale.segment.datasets.layout import Files, Layout, Pair
from gkd_scale.segment.datasets.plausible import Evidence
from gkd_scale.types import IGNORE

ABSENT_FILE = "absent.txt"
IMAGES, LABELS = "images/*", "labels/*"
"""The layout that several adapters share."""

_THREADS = 8
_LIST = re.compile(r"[,;\t]")
"""Separators of names that were written into one line."""
_COLUMNS = re.compile(r"[,;\t]\s*\d+\s*(?:[,;\t]|$)")
_NUMBER = re.compile(r"(\d+)(?:\s*[:,;.)]\s*|\s+)\S")
_ANY = identity(MOST_CLASSES)


@dataclass(frozen=True)
class FolderAdapter(Adapter):
    """An adapter whose classes come from the folder itself."""

    def meaning(self, root: Path, files: Files) -> tuple[LabelSet, Encoding]:
        names, void = read_classes(root / "classes.txt"), _read_values(root / "ignore.txt")
        unnamed = names is None
        if names is None:
            names = [str(value) for value in range(_greatest_value(files.pairs, void) + 1)]
        encoding = replace(identity(len(names), void), inferred=unnamed)
        return LabelSet(names, default_palette(len(names))), encoding

    def never(self, root: Path) -> Sequence[str]:
        names, classes = _lines(root / ABSENT_FILE), read_classes(root / "classes.txt") or ()
        for name in names:
            if name not in classes:
                near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
                raise DataError(
                    f"{root / ABSENT_FILE} names {text.quote(name, *near[:1])}, which is no class of "
                    "classes.txt",
                    f"did you mean {text.quote(near[0], name)}?"
                    if near
                    else "name classes of classes.txt, one a line",
                )
        return names


ADAPTER = FolderAdapter(
    name="folder",
    title="Any folder of images and labels",
    labels=LabelSet((), ()),
    layouts=(Layout(IMAGES, LABELS, _ANY),),
)


def read_classes(path: Path) -> list[str] | None:
    """The class names in ``classes.txt``, one a line; None if there is no such file."""
    path = _spelling(path)
    if not path.is_file():
        return None
    names = _lines(path)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    odd = next((name for name in names if name.startswith("#")), None)
    if len(names) == 1 and _LIST.search(names[0]):
        odd = names[0]
    table = _table(names)
    if not names or duplicates or odd or table or len(names) > MOST_CLASSES:
        what = table or f"holds {len(names)} names"
        if odd:
            what = f"holds {odd!r}, " + ("a comment" if odd.startswith("#") else "several names in one line")
        elif duplicates:
            what = f"names {duplicates[0]!r} twice"
        raise DataError(
            f"{path} {what}", f"write 1 to {MOST_CLASSES} different names, one a line and nothing else"
        )
    return names


def _table(names: Sequence[str]) -> str:
    """Why lines with mostly numbers or columns are no names of the values 0, 1, 2 ...; else empty."""
    columns = next((name for name in names if _COLUMNS.search(name)), "")
    if 2 * sum(bool(_COLUMNS.search(name)) for name in names) > len(names):
        return f"holds {columns!r}, several columns"
    numbers = [int(match[1]) if (match := _NUMBER.match(name)) else None for name in names]
    if 2 * sum(number is not None for number in numbers) > len(names):
        for value, (number, name) in enumerate(zip(numbers, names, strict=True)):
            if number != value:
                return f"holds {name!r} as line {value + 1}, which is the name of value {value}"
    return ""


def _spelling(path: Path) -> Path:
    """``path``, or the same name in other letter case if only that exists."""
    if path.exists() or not path.parent.is_dir():
        return path
    return next((entry for entry in sorted(path.parent.iterdir()) if entry.name.lower() == path.name), path)


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not empty; none if there is no such file."""
    path = _spelling(path)
    if not path.is_file():
        return []
    try:
        return [text.nfc(line) for line in text.read_lines(path)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "check its permissions") from None


def _read_values(path: Path) -> list[int]:
    values = _lines(path)
    for value in values:
        if not (value.isascii() and value.isdigit() and int(value) <= IGNORE):
            raise DataError(f"{path} holds {value!r}", f"write label values from 0 to {IGNORE}, one a line")
    return [int(value) for value in values]


def _greatest_value(pairs: Sequence[Pair], void: Sequence[int]) -> int:
    """The greatest value of all labels but ``void``; DataError if the values are no class ids."""
    evidence = Evidence(_ANY, ())

    def look(path: Path) -> Facts:
        raw = read_stored(path)
        facts = facts_of(raw, path, whole=True)
        if facts is None:
            raise _ANY.refusal(raw, path) or DataError(f"{path} holds no label", "restore the file")
        return facts

    with ThreadPoolExecutor(_THREADS) as pool:
        for facts in pool.map(look, [label for _, label in pairs]):
            evidence.add(facts)
    evidence.ignore(void)
    greatest = max(evidence.values, default=-1)
    if greatest < 0:
        raise DataError("no label has a class: all pixels are 255", "check the labels")
    evidence.encoding = replace(identity(greatest + 1), inferred=True)
    evidence.classes = [str(value) for value in range(greatest + 1)]
    evidence.require()
    if greatest >= MOST_CLASSES:
        raise DataError(
            f"the labels hold the value {greatest}: class ids are 0 to {MOST_CLASSES - 1}, 255 is ignored",
            "write values that are no class into ignore.txt, one a line",
        )
    return greatest
