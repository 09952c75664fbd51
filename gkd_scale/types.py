"""What passes between the parts: features, batches, and the protocols of what can be replaced.

Shapes use one legend everywhere: B images, V views, N = h·w patch tokens of a grid, row-major,
C channels (Cs student, Ct teacher), H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of a token grid."""

Size = tuple[int, int]
"""Height and width in pixels."""

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]

IGNORE = 255
"""The label value that no loss and no metric counts."""


class Features(NamedTuple):
    """Dense features of B images.

    ``cls`` (B, C): the CLS token, or the spatial mean if a model has none.
    ``patches`` (B, N, C): patch tokens, row-major over the grid.
    """

    cls: Tensor
    patches: Tensor


class Drawn(NamedTuple):
    """The random numbers of a micro batch of stage 1.

    ``masked`` (R,) int64: the rows of the images that are masked. ``masks``: their masks (R, N) bool over N
    patches, True where masked, by N. ``jitter`` (B, 3) float32: factors of brightness, contrast and
    saturation for the student's pixels; (B, 0) without jitter. ``stand_in``: no image of this micro batch is
    masked, and the first row stands in, so that every rank runs the masked pass; its result must not count.
    ``kept``: for each of several teachers the rows (K,) int64 of the images that it teaches; empty if it
    teaches all.
    """

    masked: Tensor
    masks: dict[int, Tensor]
    jitter: Tensor
    stand_in: bool = False
    kept: tuple[Tensor, ...] = ()


Draw = Callable[[Sequence[str], Sequence[int], Sequence[int]], Drawn]
"""Names, epochs and places in the global batch of B samples to their random numbers; a pure function."""


@dataclass(frozen=True)
class Batch:
    """One micro batch of stage 1.

    ``pixels`` (B, 3, H, W) uint8; ``teacher`` features as stored (fp16), ``others`` those of further
    teachers of the same pixels, each on its own grid;
    ``sids`` names of the samples; ``epochs`` (B,) the epoch each sample belongs to;
    ``positions`` (B,) int64, the place of each sample in the global batch, whatever the world size;
    ``drawn``: masks and jitter factors, None unless the batches were asked for with a ``draw``.
    """

    pixels: Tensor
    teacher: Features
    sids: tuple[str, ...]
    epochs: tuple[int, ...]
    positions: tuple[int, ...]
    drawn: Drawn | None = None
    others: tuple[Features, ...] = ()

    @property
    def teachers(self) -> tuple[Features, ...]:
        """The features of every teacher."""
        return self.teacher, *self.others


class BatchSource(Protocol):
    """The seam of stage 1: a cached and a live teacher look the same to the loop.

    ``batches(start, stop, draw)`` yields this rank's micro batches for the optimizer steps [start, stop),
    ``accumulation`` of them a step, each with what ``draw`` draws for it. It is a pure function of its
    arguments and of the seed: to resume is to start at another step. ``spread(most)`` yields features of at
    most ``most`` samples, evenly spread over samples and views: the same on every rank. ``grid`` and
    ``teacher_dim`` are the first teacher's; ``spread`` takes the number of another one.
    ``bytes_of(start, stop)``: what this rank fetches from caches in these steps; None without a cache.
    """

    grid: Grid
    image_size: Size
    teacher_dim: int

    def batches(self, start: int, stop: int, draw: Draw | None = None) -> Iterator[Batch]: ...

    def spread(self, most: int, teacher: int = 0) -> Iterator[Features]: ...

    def bytes_of(self, start: int, stop: int) -> int | None: ...


class Teacher(Protocol):
    """A frozen model that turns pixels into dense features: what a cache and stage 1 need.

    ``image_size`` of the pixels, (H, W); ``grid`` of the patch tokens; ``dim``, their channels Ct.
    """

    dim: int
    grid: Grid
    image_size: Size

    def fingerprint(self) -> dict[str, Any]:
        """What decides the features, JSON-serialisable; equal fingerprints mean equal features.

        ``model`` is its name and ``weights_sha256`` the hash of its weights; the arguments it was loaded with
        are under the names that :meth:`~gkd_scale.models.config.TeacherConfig.of_fingerprint` reads.
        """
        ...

    def __call__(self, pixels: Tensor) -> Features:
        """``pixels`` (B, 3, H, W) uint8 to float32 features on the CPU."""
        ...


class LiveTeacher(Teacher, Protocol):
    """A teacher that also runs beside a student: what stage 2's methods, ``probe`` and ``report`` need.

    ``name`` as in ``--teacher``; ``device`` it runs on; ``parameters``: how many it has. It takes pixels
    (B, 3, H, W) uint8 of any device. All results are float32 on its device, without a graph.
    """

    name: str
    device: torch.device
    parameters: int

    def features(self, pixels: Tensor) -> Features:
        """As ``__call__``, on the teacher's device."""
        ...

    def levels(self, pixels: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) of the levels ``indices``; 0 is the shallowest, -1 the deepest."""
        ...

    def level_widths(self, indices: Sequence[int]) -> list[int]:
        """Channels C_i of those maps."""
        ...

    def every_level(self, pixels: Tensor) -> list[Tensor]:
        """Maps of all levels, shallow to deep, then of the default features; one pass."""
        ...


@dataclass(frozen=True)
class SegSample:
    """One labelled image: ``image`` (H, W, 3) uint8, ``label`` (H, W) uint8 train ids, 255 ignored."""

    name: str
    image: UInt8Array
    label: UInt8Array


class SegDataset(Protocol):
    """A labelled dataset of one domain. ``palette`` has one RGB triple a class.

    ``absent`` names the classes that occur in no label: a mean IoU over the others has to say so.
    """

    name: str
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    absent: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SegSample: ...

    def label(self, index: int) -> UInt8Array:
        """The label (H, W) of a sample, without reading its image."""
        ...
