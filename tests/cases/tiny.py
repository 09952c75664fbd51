"""Small inputs that several kinds' cases share, made once."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from tests.conftest import TINY, cache_flags, tiny_args, write_images

STUDENT = ["--student", "vit_tiny_patch16_224", "--student-args", *tiny_args()]


@functools.cache
def folder() -> Path:
    """A folder that lasts as long as this process."""
    path = Path(tempfile.mkdtemp(prefix="gkd-scale-cases-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def teacher() -> Path:
    """Weights of a tiny ViT."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    path = folder() / "teacher.safetensors"
    save_file(net.state_dict(), path)
    return path


@functools.cache
def images() -> Path:
    """8 images."""
    return write_images(folder() / "images", 8)


@functools.cache
def cache() -> Path:
    """A cache of them by that teacher, 2 views."""
    from gkd_scale.cli import main

    out = folder() / "cache"
    assert main(["cache-teacher", *map(str, cache_flags(images(), teacher(), out))]) == 0
    return out


@functools.cache
def scenes() -> Path:
    """``fit`` and ``val``: labelled folders of one class list."""
    from tests.segment.support import Blocks, write_folder

    for name, count in (("fit", 4), ("val", 2)):
        write_folder(folder() / "scenes" / name, Blocks(count))
    return folder() / "scenes"


def stage1(out: Path, *more: object) -> list[object]:
    """Flags of a stage 1 of 2 steps."""
    return [
        *("--cache", cache(), "--ds-config", "zero0.json", *STUDENT, "--out", out),
        *("--global-batch", 4, "--steps", 2, "--workers", 1, *more),
    ]


def stage2(out: Path, *more: object) -> list[object]:
    """Flags of a stage 2 of 2 steps on a tiny teacher's frozen weights."""
    data = ["--train", f"folder:{scenes() / 'fit'}", "--val", f"folder:{scenes() / 'val'}"]
    return [
        *("--backbone", teacher(), "--ds-config", "zero0.json", *STUDENT, *data, "--image-size", "32x48"),
        *("--out", out, "--global-batch", 4, "--steps", 2, "--workers", 1, *more),
    ]
