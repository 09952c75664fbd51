"""Fixtures of the cache tests: a folder of images and a complete cache of it, made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gkd_scale.cache.build import build
from gkd_scale.cache.progress import BuildReport

from .support import TinyTeacher, config, write_images


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten good images, one truncated and one that is text."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 10)
    whole = (folder / "b" / "001.PNG").read_bytes()
    (folder / "b" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "text.jpg").write_text("this is no image")
    return folder


@pytest.fixture(scope="session")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """A complete cache of ``images``, not to be changed, and the report of its build."""
    out = tmp_path_factory.mktemp("cache") / "whole"
    return out, build(config(images, out), TinyTeacher(), quiet=True)


@pytest.fixture
def copy(whole: tuple[Path, BuildReport], tmp_path: Path) -> Callable[[], Path]:
    """Fresh copies of the complete cache, to be damaged."""
    numbers = iter(range(1000))

    def make() -> Path:
        return Path(shutil.copytree(whole[0], tmp_path / f"copy{next(numbers)}"))

    return make
