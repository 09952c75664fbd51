"""Opens ``ADAPTER:PATH`` or ``ADAPTER:PATH@PART`` as a dataset.

To add one: write ``gkd_scale/segment/datasets/NAME.py`` with an :class:`~.adapter.Adapter`, name it in
:data:`ADAPTERS`, and test it on a miniature in the official layout.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gkd_scale import console, text
from gkd_scale.cache.source import LabelledSource
from gkd_scale.errors import ConfigError, DataError, nearest
from gkd_scale.prefetch import prefetch
from gkd_scale.randomness import generator
from gkd_scale.segment.datasets import (
    acdc,
    bdd100k,
    cache,
    camvid,
    cityscapes,
    embedded,
    folder,
    gtav,
    isprs,
    mapillary,
    rescuenet,
    synthia,
    urbansyn,
)
from gkd_scale.segment.datasets.adapter import Adapter, PairDataset
from gkd_scale.segment.datasets.plausible import Evidence
from gkd_scale.types import IGNORE, SegDataset, SegSample, UInt8Array

ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        gtav.ADAPTER,
        synthia.ADAPTER,
        urbansyn.ADAPTER,
        cityscapes.ADAPTER,
        bdd100k.ADAPTER,
        mapillary.ADAPTER,
        acdc.ADAPTER,
        isprs.POTSDAM_RGB,
        isprs.POTSDAM_IRRG,
        isprs.POTSDAM_RGB_5,
        isprs.VAIHINGEN_IRRG,
        rescuenet.ADAPTER,
        camvid.ADAPTER,
        embedded.ADAPTER,
        folder.ADAPTER,
    )
}

CACHE = "cache"
"""``cache:PATH`` is a teacher cache with labels, which is used like a dataset but has no adapter."""

GLANCE = 32
"""The number of labels that are read if a pass over all of them would cost too much."""


class Ref(NamedTuple):
    """The parts of ``ADAPTER:PATH@PART``; ``part`` is "" if none is named."""

    adapter: str
    path: Path
    part: str = ""

    def __str__(self) -> str:
        return f"{self.adapter}:{self.path}{self.part and '@' + self.part}"


def adapter_of(name: str) -> Adapter:
    """The adapter called ``name``; ConfigError with the nearest one's name."""
    if name not in ADAPTERS:
        raise ConfigError(
            f"there is no dataset adapter '{name}'",
            nearest(name, [*ADAPTERS, CACHE]) or f"adapters: {', '.join([*ADAPTERS, CACHE])}",
        )
    return ADAPTERS[name]


def parse(ref: str) -> Ref:
    """``"acdc:some/folder@night/val"`` to its three parts; ConfigError if one is missing or unknown.

    The part follows the last ``@``; adapters without parts take all of it as the path.
    """
    name, colon, place = ref.partition(":")
    if not colon or not place:
        raise ConfigError(
            f"'{ref}' is not ADAPTER:PATH or ADAPTER:PATH@PART",
            f"adapters: {', '.join([*ADAPTERS, CACHE])}; for example folder:my/data or "
            "cityscapes:data/cityscapes@val",
        )
    return split(adapter_of(name), place)


def split(adapter: Adapter, place: str) -> Ref:
    """``PATH`` or ``PATH@PART`` of one adapter."""
    path, at, part = place.rpartition("@")
    if not at or len(adapter.parts) == 1:
        path, part = place, ""
    return Ref(adapter.name, text.spelling(Path(path).expanduser()), part)


def open_dataset(ref: str) -> SegDataset:
    """Open ``ADAPTER:PATH@PART``, or ``cache:PATH``; DataError if the files do not fit together."""
    name, _, place = ref.partition(":")
    if name == CACHE and place:
        return cache.open_dataset(place)
    name, path, part = parse(ref)
    return ADAPTERS[name].open(path, part)


def open_all(refs: Sequence[str], share: Fraction = Fraction(1)) -> Datasets:
    """``share`` of each of several datasets, as one; DataError if their classes differ."""
    datasets = [subset(open_dataset(ref), share) for ref in refs]
    for ref, other in zip(refs, datasets, strict=True):
        require_classes(other, datasets[0].classes, ref, refs[0])
    return Datasets(datasets)


def require_classes(dataset: SegDataset, classes: Sequence[str], ref: str, wanted_by: str) -> None:
    """DataError unless ``dataset`` has exactly ``classes``, in that order; names the first difference."""
    mine, theirs = [text.nfc(name) for name in dataset.classes], [text.nfc(name) for name in classes]
    if mine == theirs:
        return
    where = next(
        (
            f"class {i} is {text.quote(one, other)} there and {text.quote(other, one)} here"
            for i, (one, other) in enumerate(zip(mine, theirs, strict=False))
            if one != other
        ),
        f"{len(mine)} classes there and {len(theirs)} here",
    )
    raise DataError(
        f"{ref} and {wanted_by} have different classes: {where}",
        "use datasets of one label set; for 'folder' give both the same classes.txt",
    )


class Datasets:
    """The concatenation of ``parts``, datasets of one class list."""

    def __init__(self, parts: Sequence[SegDataset]) -> None:
        self.name = "+".join(part.name for part in parts)
        self.classes = parts[0].classes
        self.palette = parts[0].palette
        self.absent: Sequence[str] = [
            name for name in parts[0].absent if all(name in part.absent for part in parts)
        ]
        self.parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> SegSample:
        part, inner = self._locate(index)
        return part[inner]

    def label(self, index: int) -> UInt8Array:
        part, inner = self._locate(index)
        return part.label(inner)

    def _locate(self, index: int) -> tuple[SegDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        return self.parts[which], index - (self._ends[which - 1] if which else 0)


class Subset:
    """Some images of a dataset."""

    def __init__(self, dataset: SegDataset, indices: Sequence[int]) -> None:
        self.name = dataset.name
        self.classes = dataset.classes
        self.palette = dataset.palette
        self.absent = dataset.absent
        self.whole = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> SegSample:
        return self.whole[self._indices[index]]

    def label(self, index: int) -> UInt8Array:
        return self.whole.label(self._indices[index])


def subset(dataset: SegDataset, share: Fraction) -> SegDataset:
    """``share`` of the images, rounded up; smaller shares are subsets of larger ones.

    The choice depends on the number of images alone: it is the same for every seed and method. An image of a
    cache comes with all its views.
    """
    if share == 1:
        return dataset
    views = dataset.views if isinstance(dataset, cache.CachedDataset) else 1
    images = len(dataset) // views
    indices = generator("label-fraction", images).permutation(images)[: ceil(share * images)]
    return Subset(dataset, sorted(int(index) + view * images for index in indices for view in range(views)))


def check(
    dataset: SegDataset,
    workers: int,
    advance: Callable[[], object] = lambda: None,
    require: Callable[[SegSample], None] = lambda _: None,
    least: int = 1,
) -> None:
    """Read every sample once, so that a bad file ends the run before training; raises its DataError.

    DataError also for implausible labels (:mod:`.plausible`), and for labels of fewer than ``least`` classes;
    warnings are printed. ``require`` raises a DataError for a sample that can be read, but not used.
    """
    if len(dataset.classes) == 1:
        raise DataError(
            f"{dataset.name} has one class, '{dataset.classes[0]}', which every model finds",
            "label what is not that class too, with a value and a name of its own",
        )
    with _plausible(dataset) as records:
        for _ in prefetch(lambda index: require(dataset[index]), range(len(dataset)), workers, 4 * workers):
            advance()
    if records:
        ids = {int(train) for record in records for train in np.flatnonzero(record.train_pixels()[:IGNORE])}
        require_shown(dataset, ids, least)


def require_shown(dataset: SegDataset, train_ids: Collection[int], least: int) -> None:
    """DataError if labels hold fewer than ``least`` classes; ``train_ids`` are those that they hold."""
    if len(train_ids) < least:
        what = "no class" if not train_ids else f"the class '{dataset.classes[min(train_ids)]}' alone"
        raise DataError(
            f"the labels of {dataset.name} show {what}: nothing to {'learn' if least > 1 else 'score'}",
            "check that they are what was meant",
        )


def open_labels(images: str | Path, *, quiet: bool = False) -> LabelledSource | None:
    """The labelled dataset that ``--images ADAPTER:PATH`` names, after a glance; None for anything else."""
    if str(images).partition(":")[0] not in ADAPTERS:
        return None
    dataset = open_dataset(str(images))
    glance(dataset, quiet=quiet)
    return LabelledSource(dataset)


def glance(dataset: SegDataset, *, quiet: bool = False, lenient: bool = False) -> None:
    """Read some labels, evenly spread; DataError if they are implausible. Warnings are printed.

    ``lenient`` takes them for a part of the labels: if they hold nothing but void, that is a warning then.
    """
    count = min(GLANCE, len(dataset))
    with _plausible(dataset, quiet=quiet, some=lenient or count < len(dataset)):
        for place in range(count):
            dataset.label(place * len(dataset) // count)


@contextmanager
def _plausible(
    dataset: SegDataset, *, quiet: bool = False, some: bool = False
) -> Iterator[Sequence[Evidence]]:
    """Judge the labels that are read inside the context: ``some`` of them, or all."""
    with ExitStack() as stack:
        records = [stack.enter_context(part.watch()) for part in _file_datasets(dataset)]
        yield records
    for evidence in records:
        evidence.partial = some or evidence.labels < evidence.of
        for doubt in evidence.require():
            if not quiet:
                console.out.print(f"warning: {doubt}", markup=False, style="yellow")


def _file_datasets(dataset: SegDataset) -> list[PairDataset]:
    """The datasets of files inside ``dataset``."""
    if isinstance(dataset, Datasets):
        return [leaf for part in dataset.parts for leaf in _file_datasets(part)]
    if isinstance(dataset, Subset):
        return _file_datasets(dataset.whole)
    return [dataset] if isinstance(dataset, PairDataset) else []
