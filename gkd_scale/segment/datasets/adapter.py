"""Datasets as data: names, parts, layouts and label values. One function opens them all.

A *part* is a split, or a condition and a split: it follows ``@`` in ``acdc:PATH@night/val``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gkd_scale.errors import ConfigError, DataError, nearest
from gkd_scale.segment.datasets import misplaced
from gkd_scale.segment.datasets.labels import (
    Colour,
    Encoding,
    LabelSet,
    read_image,
    read_stored,
    require_same_size,
)
from gkd_scale.segment.datasets.layout import (
    Files,
    Key,
    Layout,
    Pair,
    absence,
    exists,
    look,
    require_partners,
)
from gkd_scale.segment.datasets.plausible import Evidence
from gkd_scale.types import SegSample, UInt8Array

HELD_OUT = 50
"""Datasets without an official validation split: ``@val`` is every 50th image, ``@train`` the others."""


class Part(NamedTuple):
    """One part: its name in folders, its published number of images, and ``member``, which picks them."""

    folder: str = ""
    images: int | None = None
    member: Callable[[int], bool] = lambda index: True  # noqa: ARG005


def with_held_out(images: int) -> dict[str, Part]:
    """All of a dataset, and our split of it for choosing the best step: see :data:`HELD_OUT`."""
    val = images // HELD_OUT
    return {
        "": Part(images=images),
        "train": Part(images=images - val, member=lambda index: not _is_held_out(index)),
        "val": Part(images=val, member=_is_held_out),
    }


def _is_held_out(index: int) -> bool:
    return index % HELD_OUT == HELD_OUT - 1


@dataclass(frozen=True)
class Adapter:
    """A dataset. ``parts`` maps names of parts (after ``@``) to folders; "" is the part without ``@``.

    The first of ``layouts`` whose files exist is used. ``absent`` names classes that occur in no label: a
    result over the others has to say so. ``skip`` are pairs that are bad as published.
    """

    name: str
    title: str
    labels: LabelSet
    layouts: Sequence[Layout]
    parts: Mapping[str, Part] = field(default_factory=lambda: {"": Part()})
    home: str = ""
    absent: Sequence[str] = ()
    skip: frozenset[Key] = frozenset()
    missing_hint: str = "check the path after ADAPTER:"

    def part(self, name: str) -> Part:
        """The part called ``name``; ConfigError that lists the parts."""
        if name in self.parts:
            return self.parts[name]
        parts = [part for part in self.parts if part]
        choice = "  ".join(f"{self.name}:PATH@{part}" for part in parts)
        if not parts:
            raise ConfigError(f"{self.name} has no parts, so no '@{name}'", f"write {self.name}:PATH")
        if not name:
            raise ConfigError(f"{self.name}:PATH does not say which part", f"choose one of: {choice}")
        raise ConfigError(
            f"{self.name} has no part '{name}'", nearest(name, parts) or f"choose one of: {choice}"
        )

    def find(self, root: Path, part: str = "") -> Files:
        """A part's files below ``root``; DataError if there are none, ConfigError for an unknown part."""
        spec = self.part(part)
        if not root.is_dir():
            raise misplaced.archive_error(root) or DataError(f"there is no folder {root}", self.missing_hint)
        layouts = [layout for layout in self.layouts if exists(root, spec.folder, layout)]
        if not layouts:
            raise misplaced.explain(self.name, root, part, spec.folder, self.layouts) or self._absence(
                root, spec.folder
            )
        files = look(root, spec.folder, layouts[0], self.skip)
        return files._replace(pairs=[pair for index, pair in enumerate(files.pairs) if spec.member(index)])

    def _absence(self, root: Path, folder: str) -> DataError:
        """The error that names the missing files of the first layout with any, and the other layouts."""
        partial = [candidate for candidate in self.layouts if exists(root, folder, candidate, any)]
        layout = (partial or self.layouts)[0]
        others = [
            f"{candidate.images.format(part=folder)}.* with {candidate.labels.format(part=folder)}.png"
            for candidate in self.layouts
            if candidate is not layout
        ]
        error = absence(root, folder, layout)
        return DataError(error.message, "; or ".join([error.hint, *others]))

    def present(self, root: Path, of_both: Callable[[Iterable[bool]], bool] = all) -> list[str]:
        """The parts with images and labels below ``root``; with ``any``, those with one of the two."""
        return [
            name
            for name, part in self.parts.items()
            if any(exists(root, part.folder, layout, of_both) for layout in self.layouts)
        ]

    def meaning(self, root: Path, files: Files) -> tuple[LabelSet, Encoding]:  # noqa: ARG002
        """Classes and label values of ``files``."""
        return self.labels, files.layout.encoding

    def never(self, root: Path) -> Sequence[str]:  # noqa: ARG002
        """The classes that occur in no label of the dataset in ``root``."""
        return self.absent

    def open(self, root: Path, part: str = "") -> PairDataset:
        """The dataset; DataError if files are missing, ConfigError if it has no such ``part``."""
        files = self.find(root, part)
        require_partners(files)
        if not files.pairs:
            raise DataError(f"no image of {root} falls into @{part}", "use all of it, without @")
        labels, encoding = self.meaning(root, files)
        name = f"{self.name}/{part}" if part else root.name
        return PairDataset(name, files.pairs, labels, encoding, self.never(root))


class PairDataset:
    """Image and label files of one domain. Reading one raises DataError if it cannot be used."""

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        labels: LabelSet,
        encoding: Encoding,
        absent: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.absent = absent
        self.classes: Sequence[str] = list(labels.classes)
        self.palette: Sequence[Colour] = list(labels.palette)
        self.pairs = list(pairs)
        self._encoding = encoding
        self._evidence: Evidence | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> SegSample:
        image_path, label_path = self.pairs[index]
        image, label = read_image(image_path), self.label(index)
        require_same_size(image.shape[:2], label.shape, (image_path, label_path))
        return SegSample(image_path.stem, image, label)

    def label(self, index: int) -> UInt8Array:
        """The label (H, W) of a sample, uint8 train ids, without its image."""
        path = self.pairs[index][1]
        raw = read_stored(path)
        if self._evidence is not None:
            self._evidence.look(raw, path)
        return self._encoding.decode(raw, path)

    @contextmanager
    def watch(self) -> Iterator[Evidence]:
        """Collect the facts of the labels that are read inside the context."""
        self._evidence = evidence = Evidence(self._encoding, self.classes, of=len(self))
        try:
            yield evidence
        finally:
            self._evidence = None
