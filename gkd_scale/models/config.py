"""The options that say which teacher, for every command that runs one. Light: nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_scale import ranges
from gkd_scale.config import again, option
from gkd_scale.timm_arguments import TIMM_ARGUMENTS

if TYPE_CHECKING:
    from typing_extensions import Self

TEACHER_NORMS = ("none", "layer", "standard", "whiten", "phi-s")
"""Conditionings of a teacher's tokens: see ``gkd_scale/models/conditioning.py``."""

_IN_FINGERPRINT = ("args", "layer", "patch_resize", "dtype", "mean", "std")
_RGB = ("R", "G", "B")


@dataclass
class TeacherConfig:
    """teacher: the frozen model that the student learns from"""

    name: str | None = option(
        None, "the teacher: a timm name, hf:FOLDER or hf:OWNER/NAME (transformers)", metavar="NAME"
    )
    weights: Path | None = option(
        None,
        "its local weights: .safetensors, .pth, or the folder of an hf: model (default: downloaded)",
        metavar="FILE",
    )
    args: dict[str, Any] = option({}, "arguments of timm.create_model", keys=TIMM_ARGUMENTS)
    layer: tuple[int, ...] | None = option(
        None,
        "feature level, before the final norm: 0 the first block or stage, -1 the last; several are "
        "concatenated (default: the last layer after the final norm)",
        metavar="I",
        within=ranges.LEVEL,
    )
    patch_size: int | None = option(
        None, "resample the patch embedding to this size in pixels", metavar="P", within=ranges.PIXELS
    )
    patch_resize: str = option(
        "pi",
        "how the patch embedding is resampled: pseudo-inverse, or as an image, as the reference does",
        choices=("pi", "bicubic"),
    )
    dtype: str = option(
        "float32",
        "arithmetic of the teacher; part of its fingerprint",
        choices=("float32", "bfloat16", "float16"),
    )
    mean: tuple[float, float, float] | None = option(
        None, "input mean, 0..1 (default: the model's own)", metavar=_RGB, within=ranges.MEAN
    )
    std: tuple[float, float, float] | None = option(
        None, "input standard deviation (default: the model's own)", metavar=_RGB, within=ranges.DEVIATION
    )

    def timm_args(self) -> dict[str, Any]:
        """The arguments of timm.create_model, with the patch size if it is given."""
        return self.args if self.patch_size is None else {**self.args, "patch_size": self.patch_size}

    @classmethod
    def of_fingerprint(cls, fingerprint: Mapping[str, Any], weights: Path | None = None) -> Self:
        """The teacher of a cache, from its fingerprint, which does not hold the path of the ``weights``."""
        options = {key: fingerprint[key] for key in _IN_FINGERPRINT if fingerprint.get(key) is not None}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        if isinstance(values.get("layer"), int):
            values["layer"] = (values["layer"],)
        return cls(name=fingerprint.get("model"), weights=weights, **values)


@dataclass
class DemoTeacherConfig(TeacherConfig):
    """teacher: the frozen model that the student learns from"""

    name: str = again(TeacherConfig, "name", "demo_teacher")


@dataclass
class ConditioningConfig:
    """conditioning: what is done to the teacher's tokens before they are compared"""

    norm: str = option(
        "none",
        "layer is (x - mean)/std over a token's channels; the others use moments of all tokens (the cache's, "
        "or the training images' if the teacher runs): by channel (standard), by principal component "
        "(whiten), rotated (phi-s)",
        choices=TEACHER_NORMS,
    )
    power: float = option(
        0.5,
        "with whiten: eigenvalues to the power -P/2; 1 makes all directions equally loud",
        metavar="P",
        within=ranges.POWER,
    )
