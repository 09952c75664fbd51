"""Features of a wrong shape are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gkd_scale.cache.build import build
from gkd_scale.cache.progress import BuildReport
from gkd_scale.errors import ModelError

from .support import TinyTeacher, config

Whole = tuple[Path, BuildReport]


def test_a_teacher_that_breaks_its_promise_is_refused(images: Path, tmp_path: Path) -> None:
    teacher = TinyTeacher()
    teacher.dim = 13
    with pytest.raises(ModelError, match=r"gave CLS \(3, 12\)"):
        build(config(images, tmp_path), teacher, quiet=True)
    other_size = dataclasses.replace(config(images, tmp_path), image_size="64")
    with pytest.raises(ModelError, match="images of 32x48, not 64x64"):
        build(other_size, TinyTeacher(), quiet=True)
