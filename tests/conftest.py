"""Fixtures that several packages' tests share: real images, a tiny teacher's weights, real launches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# A busy machine is no failure: examples have no deadline of their own, pytest-timeout bounds each test.
settings.register_profile("gkd-scale", deadline=None)
settings.load_profile("gkd-scale")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BIN = Path(sys.executable).parent
os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
"""As in an activated environment: commands are printed by their names where these are found."""
TINY = {"patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
"""Arguments that make timm's vit_tiny_patch16_224 tiny indeed."""


def tiny_args() -> list[str]:
    return [f"{key}={value}" for key, value in TINY.items()]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared here")
    return SHARED


@dataclass(frozen=True)
class Result:
    """A finished command."""

    code: int
    text: str


def run(command: Sequence[object], cwd: Path, timeout: int = 300) -> Result:
    """Run a command in an environment like a user's; its exit code and output."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return Result(result.returncode, result.stdout)


def environment() -> dict[str, str]:
    variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
    rest = {key: value for key, value in os.environ.items() if key not in variables}
    return {**rest, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def deepspeed(script: str, *flags: object, ranks: int = 1) -> list[str]:
    """The command line of a launch on ``ranks`` ranks; a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [BIN / "deepspeed", "--num_gpus", ranks, "--master_port", port]
    return [str(part) for part in (*launcher, ROOT / "launchers" / script, *flags)]


def write_images(folder: Path, count: int, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Smooth random colour images, so that JPEG keeps them about as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        small = np.random.default_rng([seed, index]).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny ViT with a random but fixed initialisation."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    save_file(net.state_dict(), path)
    return path


def cache_flags(images: Path, weights: Path, out: Path) -> list[object]:
    """Flags of cache-teacher for the tiny teacher at 32x48 (a grid of 2x3)."""
    return [
        *("--images", images, "--teacher", "vit_tiny_patch16_224", "--teacher-weights", weights),
        *("--teacher-args", *tiny_args(), "--image-size", "32x48", "--views", 2),
        *("--samples-per-shard", 5, "--batch-size", 4, "--out", out),
    ]


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """A cache of 12 images, 2 views, made by the real command."""
    from tests import warm

    folder = tmp_path_factory.mktemp("cache")
    images = write_images(folder / "images", 12)
    result = warm.run(
        [BIN / "gkd-scale", "cache-teacher", *cache_flags(images, tiny_teacher, folder / "cache")], folder
    )
    assert result.code == 0, result.text
    return folder / "cache"


@pytest.fixture(scope="session")
def finer_cache(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The views of ``tiny_cache`` through another tiny teacher, with a grid of 4x6."""
    import timm
    import torch
    from safetensors.torch import save_file

    from gkd_scale.cache.build import build
    from gkd_scale.cache.config import CacheTeacherConfig
    from gkd_scale.models.config import TeacherConfig
    from gkd_scale.models.registry import load_teacher

    torch.manual_seed(6)
    folder, name = tmp_path_factory.mktemp("finer"), "vit_small_patch16_224"
    args = {**TINY, "patch_size": 8, "embed_dim": 24}
    save_file(timm.create_model(name, num_classes=0, **args).state_dict(), folder / "finer.safetensors")
    cfg = CacheTeacherConfig(
        images=tiny_cache.parent / "images", image_size="32x48", views=2, samples_per_shard=5,
        out=folder / "cache",
    )  # fmt: skip
    teacher = TeacherConfig(name, weights=folder / "finer.safetensors", args=args)
    build(cfg, load_teacher(teacher, cfg.size), quiet=True)
    return cfg.out
