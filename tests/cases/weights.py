"""What the cases of weights share: a tiny network, commands that load it, and what they made of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import timm
import torch

from gkd_scale.cache.spec import read_spec
from gkd_scale.models.tensor_files import StateDict
from gkd_scale.models.weights import fingerprint as fingerprint_of
from gkd_scale.models.weights import load_into
from tests.cases.case import Bench, Ran
from tests.conftest import TINY, tiny_args, write_images


@cache
def _state(arguments: tuple[tuple[str, object], ...]) -> StateDict:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**TINY, **dict(arguments)})
    # Biases and the like start as zeros: as trained ones they are not.
    generator = torch.Generator().manual_seed(6)
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in net.state_dict().items()}
    return {name: value + 0.02 * noise[name] for name, value in net.state_dict().items()}


def state(**arguments: object) -> StateDict:
    """The tensors of the tiny network, with these arguments beside its own."""
    return dict(_state(tuple(sorted(arguments.items()))))


def save(bench: Bench, content: object, name: str = "weights.pth") -> Path:
    """``content`` as a file."""
    path = bench.folder / name
    torch.save(content, path)
    return path


def cache_with(
    bench: Bench,
    weights: Path,
    *arguments: str,
    out: str = "cache",
    args: Sequence[str] = (),
    image_size: str = "32x48",
) -> Ran:
    """``cache-teacher`` with the tiny network as the teacher; a refusal must leave no folder."""
    images = bench.folder / "images"
    if not images.is_dir():
        write_images(images, 2)
    ran = bench.cli(
        *("cache-teacher", "--images", images, "--teacher", "vit_tiny_patch16_224"),
        *("--teacher-weights", weights, "--teacher-args", *(args or tiny_args()), *arguments),
        *("--image-size", image_size, "--device", "cpu", "--workers", 0, "--out", bench.folder / out),
    )
    assert (bench.folder / out).exists() == (ran.code == 0)
    return ran


def right(bench: Bench, content: object, *arguments: str, **made_with: object) -> Ran:
    """``cache-teacher`` with a file of ``content``, whose weights must be those of the plain file."""
    return right_file(bench, save(bench, content), *arguments, **made_with)


def right_file(bench: Bench, weights: Path, *arguments: str, **made_with: object) -> Ran:
    """As :func:`right` with a file that is there."""
    ran = cache_with(bench, weights, *arguments)
    assert ran.code == 0, ran.text
    plain = cache_with(bench, save(bench, state(**made_with), "plain.pth"), *arguments, out="plain")
    assert plain.code == 0, plain.text
    assert taught_by(bench, "cache") == taught_by(bench, "plain")
    return ran


def fingerprint(content: StateDict) -> str:
    """The fingerprint of the tiny network with what is found in ``content``."""
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    load_into(net, content, "weights.pth")
    return fingerprint_of(net)


def taught_by(bench: Bench, out: str) -> object:
    """The fingerprint of a cache's teacher."""
    return read_spec(bench.folder / out).teacher["weights_sha256"]
