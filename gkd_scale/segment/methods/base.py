"""The interface of methods to compare with: outputs of student and teacher in, weighted loss terms out.

The loop trains a method's own parameters (alignment layers, mask tokens) with the student and does not
export them. Random numbers come from torch's global generator, which the loop seeds by step and rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gkd_scale.errors import ConfigError
from gkd_scale.models.backbone import Backbone
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.outputs import BackboneOutputs
from gkd_scale.models.tokens import resample_tokens, to_map
from gkd_scale.models.weights import fingerprint
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import Features, Grid, LiveTeacher, Size


class MethodTeacher:
    """The frozen teacher of one run: its features come from ``model``, its logits from its trained ``head``.

    It is no nn.Module, so the loop does not train, save or shard it with the student. The conditioning
    applies to the features; levels and logits are as the teacher computes them.
    """

    def __init__(
        self,
        model: LiveTeacher | None = None,
        head: Segmenter | None = None,
        conditioning: Conditioning | None = None,
    ) -> None:
        self._model = model
        self._head = head.requires_grad_(False).eval() if head is not None else None
        self.conditioning = conditioning or Conditioning()

    def identity(self) -> list[str]:
        """Fingerprints of the teacher's weights, of its head's and of the conditioning."""
        model = [] if self._model is None else [str(self._model.fingerprint()["weights_sha256"])]
        head = [] if self._head is None else [fingerprint(self._head)]
        return [*model, *head, self.conditioning.digest()]

    @property
    def has_head(self) -> bool:
        """Whether the teacher can compute logits."""
        return self._head is not None

    @property
    def model(self) -> LiveTeacher:
        """The teacher that computes the features; ConfigError if the run names none."""
        if self._model is None:
            raise ConfigError(
                "this method compares features and no teacher is named",
                "give --teacher NAME, and --teacher-weights FILE where timm cannot download",
            )
        return self._model

    def features(self, pixels: Tensor) -> Features:
        """CLS (B, Ct) and patches (B, N, Ct) of ``pixels`` (B, 3, H, W), float32."""
        return self.conditioning.to(pixels.device)(self.model.features(pixels))

    def levels(self, pixels: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) of the teacher's levels ``indices``, float32."""
        return self.model.levels(pixels, indices)

    def level_widths(self, indices: Sequence[int]) -> list[int]:
        """The channels C_i of the teacher's levels ``indices``."""
        return self.model.level_widths(indices)

    @torch.no_grad()
    def logits(self, pixels: Tensor, size: Size) -> Tensor:
        """(B, K, *size) of the teacher's own head, float32."""
        segmenter = self.require_head().to(pixels.device)
        return segmenter.head.class_logits(segmenter.features(pixels), size).float()

    def require_head(self) -> Segmenter:
        """The teacher with its head; ConfigError if the run has none."""
        if self._head is None:
            raise ConfigError(
                "this method needs the teacher's logits, and no head of the teacher is given",
                "train one (stage2.py --backbone WEIGHTS --student TEACHER), then give --teacher-head RUN",
            )
        return self._head


@dataclass(frozen=True)
class MethodInputs:
    """One batch and the outputs of student and teacher; the teacher runs only if a method uses its outputs.

    ``pixels`` (B, 3, H, W) and ``labels`` (B, H, W) uint8. ``student``: the outputs of its one pass.
    ``head(size)``: the student's logits (B, K, *size). ``again(change)``: another pass of the student, with
    changed pixels.
    """

    pixels: Tensor
    labels: Tensor
    student: BackboneOutputs
    teacher: MethodTeacher
    head: Callable[[Size], Tensor]
    again: Callable[[Callable[[Tensor], Tensor]], BackboneOutputs]

    @cached_property
    def teacher_features(self) -> Features:
        """The teacher's features of the same pixels, float32, without a graph."""
        return self.teacher.features(self.pixels)

    @cached_property
    def logits(self) -> tuple[Tensor, Tensor]:
        """Logits (B, K, h, w) of student and teacher at the size of the head's finest map, float32."""
        finest = self.student.maps[0]
        size = (finest.shape[2], finest.shape[3])
        return self.head(size).float(), self.teacher.logits(self.pixels, size)


class Method(nn.Module, ABC):
    """Built with the student's ``backbone``, the ``teacher``, and its own arguments.

    ``levels``: which of the student's early levels its pass must keep. ``task_weight``: the factor of the
    task's loss.
    """

    levels: Sequence[int] = ()
    task_weight: float = 1.0

    @abstractmethod
    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        """Scalar terms by name, each with its weight; their sum is added to the task's loss."""


class FeatureMethod(Method, ABC):
    """A method that compares the last features on the teacher's grid; ``student_dim``, ``teacher_dim``."""

    def __init__(self, backbone: Backbone, teacher: MethodTeacher) -> None:
        super().__init__()
        self.student_dim = int(backbone.channels[-1])
        self.teacher_dim = teacher.model.dim
        self.teacher_grid: Grid = teacher.model.grid

    def student_tokens(self, student: BackboneOutputs) -> Tensor:
        """The student's last patches (B, N, Cs), resampled to the teacher's grid."""
        return resample_tokens(student.features.patches, student.grid, self.teacher_grid)

    def student_map(self, student: BackboneOutputs) -> Tensor:
        """The same as a map (B, Cs, h, w)."""
        return to_map(self.student_tokens(student), self.teacher_grid)

    def teacher_map(self, inputs: MethodInputs) -> Tensor:
        """The teacher's last patches as a map (B, Ct, h, w)."""
        return to_map(inputs.teacher_features.patches, self.teacher_grid)


def sum_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ (s - t)² over everything, divided by the B images, in float32."""
    return F.mse_loss(student.float(), teacher.float(), reduction="sum") / len(student)


def random_masks(images: int, tokens: int, ratio: float, device: torch.device) -> Tensor:
    """(B, N) bool, True where masked: round(ratio·N) in every image, at least one."""
    order = torch.rand(images, tokens, device=device).argsort(1)
    return order < max(1, round(ratio * tokens))


def generation(width: int) -> nn.Sequential:
    """conv3x3, ReLU, conv3x3: rebuilds masked features from their surroundings."""
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
    )
