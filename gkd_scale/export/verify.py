"""An export against the run in PyTorch, on real pixels: the largest difference, equal classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd_scale.errors import GkdError
from gkd_scale.export.subject import Forward, Shapes, Subject
from gkd_scale.segment.augment import Colour
from gkd_scale.types import Size

TOLERANCE = 1e-4
"""Of float32: the largest difference, as a share of the largest value if that is above 1."""
SAME = 0.999
"""Of float32: the least share of pixels with the same class."""


class Differs(GkdError):
    """What an export computes is not what the run computes."""


@dataclass(frozen=True)
class Difference:
    """Of one output over all images: ``largest`` absolute difference, ``value`` the largest of the run.

    ``same`` is the share of pixels whose class is the same, 0..1; None if the output is not logits.
    """

    output: str
    largest: float
    value: float
    same: float | None = None

    def line(self) -> str:
        """For people."""
        classes = "" if self.same is None else f"; the same class in {100 * self.same:.3f} % of pixels"
        return (
            f"{self.output}: largest difference {self.largest:.2g}, of values up to {self.value:.3g}{classes}"
        )


def differences(
    subject: Subject, forward: Forward, images: Tensor, shapes: Shapes, *, exact: bool
) -> list[Difference]:
    """The difference of every output on ``images`` (N, 3, H, W) uint8, and on their parts of other sizes.

    With ``exact`` one above the tolerance of float32 raises Differs; a value that is not finite always does.
    """
    by_output: dict[str, Difference] = {}
    for batch in _batches(images, shapes, subject):
        ref, out = subject.reference(batch), forward(batch.float() / 255)
        if set(ref) != set(out):
            raise Differs(f"the export gives {', '.join(out)}, not {', '.join(ref)}")
        for name, value in ref.items():
            difference = _difference(name, value, out[name])
            by_output[name] = _larger(by_output[name], difference) if name in by_output else difference
    for difference in by_output.values():
        other_classes = difference.same is not None and difference.same < SAME
        if exact and (other_classes or difference.largest > TOLERANCE * max(1.0, difference.value)):
            raise Differs(f"the export differs from the run: {difference.line()}")
    return list(by_output.values())


def _batches(images: Tensor, shapes: Shapes, subject: Subject) -> Iterator[Tensor]:
    """All images, one image, and, if any size is taken, parts of them; or one by one, if one is taken."""
    if shapes is Shapes.ONE:
        yield from images.split(1)
        return
    yield images
    yield images[:1]
    if shapes is Shapes.ANY:
        height, width = _smaller((images.shape[2], images.shape[3]), subject)
        yield images[:2, :, :height, :width]


def _smaller(size: Size, subject: Subject) -> Size:
    """About two thirds of a size: odd if borders are added inside, else whole patches."""
    stride = 1 if subject.head else max(subject.backbone.stride, 1)
    least = 32 if stride == 1 else stride
    height, width = (max(least, side * 2 // 3 // stride * stride) for side in size)
    return height, width


def _difference(name: str, ref: Tensor, out: Tensor) -> Difference:
    if ref.shape != out.shape:
        raise Differs(f"{name} of the export has the shape {tuple(out.shape)}, not {tuple(ref.shape)}")
    if not torch.isfinite(out).all():
        raise Differs(f"{name} of the export is not finite everywhere")
    same = float((ref.argmax(1) == out.argmax(1)).double().mean()) if name == "logits" else None
    return Difference(name, float((ref - out).abs().max()), float(ref.abs().max()), same)


def _larger(one: Difference, other: Difference) -> Difference:
    same = None if one.same is None or other.same is None else min(one.same, other.same)
    return Difference(one.output, max(one.largest, other.largest), max(one.value, other.value), same)


class ExportedSegmenter:
    """A loaded segmenter as inference takes it: the border is added inside, so any size is a multiple."""

    stride = 1
    fill: Colour = (0, 0, 0)

    def __init__(self, forward: Forward, shapes: Shapes) -> None:
        self._forward = forward
        self._shapes = shapes

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, K, H, W) float32."""
        batches: Sequence[Tensor] = pixels.split(1) if self._shapes is Shapes.ONE else [pixels]
        return torch.cat([self._forward(batch.float() / 255)["logits"] for batch in batches])
