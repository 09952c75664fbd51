"""The teacher that cache-teacher's options ask for, or that a cache was made with."""

from __future__ import annotations

from pathlib import Path

from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.repair import teacher_arguments
from gkd_scale.cache.spec import Spec
from gkd_scale.models.teachers import TimmTeacher, load_teacher


def teacher_for(recipe: CacheTeacherConfig, device: str) -> TimmTeacher:
    """The teacher that ``recipe`` names, on one device; raises ModelError."""
    return load_teacher(
        recipe.teacher,
        recipe.size,
        weights=recipe.teacher_weights,
        args=recipe.teacher_args,
        layers=recipe.teacher_layer or (),
        mean=recipe.mean,
        std=recipe.std,
        patch=recipe.patch_size,
        resize=recipe.patch_resize,
        device=device,
        dtype=recipe.teacher_dtype,
    )


def teacher_of(spec: Spec, weights: Path | None, device: str) -> TimmTeacher:
    """The teacher that the spec of a cache names, on one device; raises ModelError.

    ``weights`` is its file; None: the weights that timm downloads, or those shipped with the project.
    """
    return load_teacher(
        spec.teacher["model"],
        spec.image_size,
        weights=weights,
        device=device,
        **teacher_arguments(spec.teacher),
    )
