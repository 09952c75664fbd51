"""Finds implausible labels from the values of all label files together.

A label file can be read with any values, and a wrong one trains to a good-looking score: a mask of 0 and
255 has one class, since 255 is ignored, and scores 100. :class:`Evidence` sums the facts of labels while they
are read anyway (``datasets check``, the check before stage 2); :func:`findings` says what cannot be right
(errors) and what may be wrong (warnings), one sentence each.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gkd_scale.errors import DataError
from gkd_scale.segment.datasets.facts import VALUES, Facts, Palette, facts_of
from gkd_scale.segment.datasets.labels import Colour, Encoding, Raw, ranges
from gkd_scale.segment.datasets.values import MANY, explain
from gkd_scale.types import IGNORE, Int64Array

_PALETTES = 8
"""The number of palettes that are compared with each other."""

_LEAST_CHANGES = 50
_LEAST_PIXELS = 4096
"""With fewer pixels in all labels, nothing is said about how they were made."""


class Finding(NamedTuple):
    """An error, or a warning if ``error`` is False, and what to do."""

    error: bool
    text: str
    hint: str

    def __str__(self) -> str:
        return f"{self.text} ({self.hint})"


@dataclass
class Evidence:
    """The summed facts of all labels of a dataset, or of some if ``partial``.

    ``void_alone`` labels hold only 0 and 255; ``void_beside`` labels hold 255 and values from 1 to 254.
    """

    encoding: Encoding
    classes: Sequence[str]
    of: int = 0
    partial: bool = False
    where: str = ""
    labels: int = 0
    pixels: Int64Array = field(default_factory=lambda: np.zeros(VALUES, np.int64))
    pairs: int = 0
    changes: int = 0
    specks: int = 0
    ramps: int = 0
    constant: int = 0
    void_alone: int = 0
    void_beside: int = 0
    alike: Counter[int] = field(default_factory=Counter)
    palettes: dict[Palette, tuple[Path, list[int]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ignore(self, values: Sequence[int]) -> None:
        """Count the pixels of more values as ignored."""
        for value in values:
            if value != IGNORE:
                self.pixels[IGNORE] += self.pixels[value]
                self.pixels[value] = 0

    def look(self, raw: Raw, path: Path) -> None:
        """Add the facts of a label file, from any thread; none if it does not hold ids of one channel."""
        facts = facts_of(raw, path, self.encoding.channel)
        if facts is not None:
            with self._lock:
                self.add(facts)

    def add(self, facts: Facts) -> None:
        """Add the facts of one label; from one thread at a time."""
        self.where = self.where or str(facts.path.parent)
        self.labels += 1
        self.pixels += facts.pixels
        self.pairs += facts.pairs
        self.changes += facts.changes
        self.specks += facts.specks
        self.ramps += facts.ramps
        if facts.pixels[IGNORE]:
            beside = bool(facts.pixels[1:IGNORE].any())
            self.void_beside += beside
            self.void_alone += not beside and bool(facts.pixels[0])
        self.constant += int(np.count_nonzero(facts.pixels) == 1)
        self.alike[hash(facts.pixels.tobytes())] += 1
        if facts.palette is not None:
            self._compare(facts.palette, facts)

    def _compare(self, palette: Palette, facts: Facts) -> None:
        """Keep the palettes whose files' paths come first, in any order of reading."""
        before = self.palettes.get(palette)
        if before is None or facts.path < before[0]:
            uses = [int(index) for index in np.flatnonzero(facts.pixels) if 3 * index < len(palette)]
            self.palettes[palette] = (facts.path, uses)
            if len(self.palettes) > _PALETTES:
                del self.palettes[max(self.palettes, key=lambda other: self.palettes[other][0])]

    def difference(self, describe: Callable[..., str]) -> str:
        """The first difference between two palettes, in the words of ``describe``; empty if there is none."""
        palettes = sorted((path, uses, _colours(palette)) for palette, (path, uses) in self.palettes.items())
        for place, (path, uses, new) in enumerate(palettes):
            for other, other_uses, old in palettes[:place]:
                change = describe(uses, new, old, path, other) or describe(other_uses, old, new, other, path)
                if change:
                    return change
        return ""

    @property
    def values(self) -> list[int]:
        """The stored values that occur, except 255 (and except ignored ones if ids are inferred)."""
        values = [int(value) for value in np.flatnonzero(self.pixels[:IGNORE])]
        if not self.encoding.inferred:
            return values
        return [value for value in values if self.encoding.ids.get(value) != IGNORE]

    def train_pixels(self) -> Int64Array:
        """Pixels of each train id, (256,)."""
        table = np.full(VALUES, IGNORE, np.int64)
        for value, train in self.encoding.ids.items():
            if 0 <= value < VALUES:
                table[value] = train
        return np.bincount(table, weights=self.pixels, minlength=VALUES).astype(np.int64)

    def require(self) -> list[str]:
        """Raise the first error as a DataError; return the warnings."""
        results = list(findings(self))
        for finding in results:
            if finding.error:
                raise DataError(f"{self.where}: {finding.text}", finding.hint)
        return [f"{self.where}: {finding}" for finding in results]


def _colours(palette: Palette) -> list[Colour]:
    return [(red, green, blue) for red, green, blue in zip(*(palette[i::3] for i in range(3)), strict=False)]


def _new_index(uses: Sequence[int], new: list[Colour], old: list[Colour], path: Path, before: Path) -> str:
    """Says which colour that ``path`` uses has another index in ``before``; empty if none has."""
    common = [index for index in uses if new[index] in old]
    if 2 * len(common) <= len(uses):
        return ""
    for index in common:
        colour = new[index]
        place = old.index(colour)
        if old[index : index + 1] != [colour] and new[place : place + 1] != [colour]:
            return f"the colour {colour} is index {place} in {before} and index {index} in {path}"
    return ""


def _new_colour(uses: Sequence[int], new: list[Colour], old: list[Colour], path: Path, before: Path) -> str:
    for index in uses:
        if index < len(old) and new[index] != old[index]:
            return f"index {index} is {old[index]} in {before} and {new[index]} in {path}"
    return ""


# ------------------------------------------------------------------------------------ findings


def findings(stats: Evidence) -> Iterator[Finding]:
    """The findings about the labels, the gravest first."""
    if not stats.labels or not stats.pixels.any():
        return
    if change := stats.difference(_new_index):
        yield Finding(
            True,
            f"labels have palettes that differ from file to file: {change}; the index is the class id",
            "store class ids with one palette for all files (a colour-coded label has to be converted by its "
            "colours, not by quantising each file)",
        )
    elif change := stats.difference(_new_colour):
        yield Finding(
            False, f"palettes differ from file to file: {change}", "check that indices are class ids"
        )
    yield from _one_class(stats)
    yield from _two_scales(stats)
    yield from _photographs(stats)
    yield from _train_ids(stats)
    if stats.encoding.inferred:
        yield from _values(stats)
    yield from _interpolation(stats)
    yield from _doubts(stats)


def _one_class(stats: Evidence) -> Iterator[Finding]:
    """Labels with only one class: every score on them would be 100."""
    values, void = stats.values, bool(stats.pixels[IGNORE])
    train_ids = np.flatnonzero(stats.train_pixels()[:IGNORE])
    if values == [0] and void:
        yield Finding(
            not stats.partial,
            f"the labels hold 0 and 255 alone, and 255 is ignored: one class, '{_name(stats, 0)}', is left, "
            "which every model finds",
            "store the other class as 1: a mask of 0 and 255, divided by 255",
        )
    elif len(stats.classes) == 1 or (stats.encoding.inferred and len(train_ids) == 1):
        yield Finding(
            True,
            f"the labels hold one class, '{stats.classes[0]}' (value {ranges(values)}): every model finds it",
            "check that the labels are what was meant; a second class needs a value of its own, "
            "for example 0 for what is not the first",
        )
    elif len(train_ids) == 1:
        yield Finding(
            False,
            f"the labels show one of {len(stats.classes)} classes, '{_name(stats, train_ids[0])}'",
            "check that they are what was meant",
        )
    elif len(train_ids) == 0 and not void:
        yield Finding(False, "no pixel of the labels has a class", "check that they are what was meant")


def _photographs(stats: Evidence) -> Iterator[Finding]:
    """Grey photographs, depth maps and the like instead of labels."""
    if stats.pairs < _LEAST_PIXELS or len(stats.values) < MANY:
        return
    if stats.changes > 0.3 * stats.pairs and stats.specks > 0.6 * stats.changes:
        yield Finding(
            True,
            f"the labels look like photographs: {len(stats.values)} values, and "
            f"{100 * stats.changes // stats.pairs} % of all pixels differ from the next",
            "check that images/ and labels/ are not swapped",
        )


def _two_scales(stats: Evidence) -> Iterator[Finding]:
    """Masks of 0 and 255 among masks of 0 and 1."""
    if stats.values == [0, 1] and stats.void_alone and not stats.void_beside:
        yield Finding(
            stats.void_alone > 1,
            f"{stats.void_alone} of {stats.labels} labels hold 0 and 255 alone, the others 0 and 1: masks of "
            "two scales, and 255 is ignored",
            "store 1 in all of them, if 255 means the same",
        )


def _interpolation(stats: Evidence) -> Iterator[Finding]:
    """Labels with blurred borders: between two classes lie pixels with the ids between theirs."""
    if stats.pairs < _LEAST_PIXELS or stats.changes < _LEAST_CHANGES:
        return
    if stats.ramps > 0.15 * stats.changes and stats.ramps > 0.4 * stats.specks:
        yield Finding(
            True,
            f"the labels were resized with interpolation, or saved as JPEG once: of {stats.changes} "
            f"borders between pixels, {100 * stats.ramps // stats.changes} % have a value between those of "
            "their sides",
            "make the labels anew from the originals; resize them with the nearest neighbour",
        )


def _train_ids(stats: Evidence) -> Iterator[Finding]:
    """Train ids instead of a dataset's own ids."""
    ids, classes = stats.encoding.ids, len(stats.classes)
    values = stats.values
    if not values or all(ids.get(value) == value for value in range(classes)) or max(values) >= classes:
        return
    void = sum(int(stats.pixels[value]) for value in values if ids.get(value) == IGNORE)
    count = int(stats.pixels[:IGNORE].sum())
    least = 0.05 if stats.pixels[IGNORE] else 0.3  # none of these datasets stores 255
    if least * count < void < count and len(values) > 2:
        yield Finding(
            True,
            f"the labels hold train ids (values {ranges(values)}), not the dataset's own ids "
            f"({stats.encoding.text}): read as those, {100 * void // count} % of their "
            "pixels would be void and the others of another class",
            "restore the original files, or call them what they are (Cityscapes: *_labelTrainIds.png), or "
            "read them with folder:PATH, from images/ and labels/",
        )


def _values(stats: Evidence) -> Iterator[Finding]:
    """Values that are no class ids, if the classes are inferred from the values."""
    values = stats.values
    classes = max(values) + 1
    if explanation := explain(values, stats.pixels):
        text = f"{len(values)} values ({_first(values)}), from which {classes} classes would follow"
        yield Finding(
            explanation.sure,
            f"the labels hold {text}: {explanation.what}",
            f"{explanation.hint}; or name the classes in classes.txt",
        )


def _doubts(stats: Evidence) -> Iterator[Finding]:
    """Labels that are seldom right."""
    values, ids = stats.values, stats.encoding.ids
    total = int(stats.pixels.sum())
    if len(values) > 1 and values[0] == 1 and ids.get(0, IGNORE) != IGNORE:
        yield Finding(
            False,
            f"no label holds 0, the value of '{_name(stats, ids[0])}': the values are {ranges(values)}",
            "if they count from 1, subtract 1",
        )
    if stats.pixels[IGNORE] > 0.95 * total:
        yield Finding(
            stats.pixels[IGNORE] == total and not stats.partial,
            f"{100 * stats.pixels[IGNORE] // total} % of the labels' pixels are 255, ignored",
            "check that they are what was meant",
        )
    rough = stats.changes > 0.04 * stats.pairs and stats.specks > 0.45 * stats.changes
    if stats.pairs >= _LEAST_PIXELS and len(values) > 3 and rough:
        yield Finding(
            False,
            "the labels are full of single pixels that differ from both neighbours",
            "check that they were never saved as JPEG nor resized with interpolation",
        )
    if stats.labels > 3 and len(stats.alike) == 1 and stats.constant < stats.labels:
        yield Finding(False, f"all {stats.labels} labels hold the same", "check that each image has its own")
    elif stats.labels > 3 and stats.constant == stats.labels and len(values) > 1:
        yield Finding(
            False, "each label holds one value alone", "check that they are labels of pixels, not of images"
        )


def _name(stats: Evidence, train: int) -> str:
    return stats.classes[train] if train < len(stats.classes) else str(train)


def _first(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
