"""The teacher of a recipe: what cache-teacher's options ask for, whoever runs it."""

from __future__ import annotations

from gkd_scale.cache.config import CacheTeacherConfig
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
