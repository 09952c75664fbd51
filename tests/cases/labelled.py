"""What several kinds of cases need: a finished stage-2 run, labelled folders, and a tiny teacher."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from gkd_scale.cache.reader import Cache
from gkd_scale.segment import export
from gkd_scale.types import UInt8Array
from tests.cases.case import Bench, Ran
from tests.conftest import TINY, tiny_args
from tests.segment.support import CLASSES, Blocks, tiny_segmenter

SIZE = (32, 48)
SCENES = Blocks(3, [SIZE], void=False)

Save = Callable[[UInt8Array, Path], object]
"""Write pixels (H, W, 3) as a file whose name lacks its suffix."""


def folder(root: Path, save: Save, classes: Sequence[str] | None = CLASSES) -> Path:
    """The scenes in the layout of the folder adapter, their images written by ``save``."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for sample in SCENES.samples:
        save(sample.image, root / "images" / sample.name)
        Image.fromarray(sample.label).save(root / "labels" / f"{sample.name}.png")
    if classes is not None:
        (root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    return root


def grey(pixels: UInt8Array) -> UInt8Array:
    """(H, W)"""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def saver(suffix: str, change: Callable[[UInt8Array], npt.NDArray[Any]], **options: Any) -> Save:
    """Writes what ``change`` makes of the pixels."""
    return lambda pixels, path: Image.fromarray(change(pixels)).save(path.with_suffix(suffix), **options)


PNG = saver(".png", lambda pixels: pixels)


def finished_run(bench: Bench, classes: Sequence[str] = CLASSES) -> Path:
    """A finished stage-2 run of a tiny segmenter with random weights."""
    run = bench.folder / "run"
    if not run.exists():
        model = tiny_segmenter()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
        model.backbone.save(run)
        export.save_head(run, model.head)
        colours = [*Blocks.palette]
        export.save_card(run, export.Card("linear", {}, list(classes), colours, SIZE, "frozen", 7, 12.5))
    return run


def evaluate(bench: Bench, *roots: Path, flags: Sequence[object] = ()) -> tuple[Ran, list[float]]:
    """``evaluate`` on folders, and their mIoU."""
    run = finished_run(bench)
    refs = [part for root in roots for part in ("--data", f"{root.name}=folder:{root}")]
    (run / "evaluation.json").unlink(missing_ok=True)
    ran = bench.cli("evaluate", run, *refs, *flags)
    if ran.code:
        return ran, []
    scores = json.loads((run / "evaluation.json").read_text())
    return ran, [scores[root.name]["miou"] for root in roots]


@functools.cache
def teacher_weights() -> Path:
    """Weights of the tiny teacher."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(5)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY)
    path = Path(tempfile.mkdtemp(prefix="gkd-cases-")) / "tiny.safetensors"
    save_file(net.state_dict(), path)
    return path


def cache_images(bench: Bench, images: object, out: Path, *flags: object) -> Ran:
    """``cache-teacher`` on centred views without jitter: equal pixels give equal features."""
    plain = ("--view.crop", "center", "--view.flip", 0, "--view.color", 0, "--view.quality", 100)
    teacher = ("--teacher", "vit_tiny_patch16_224", "--teacher-weights", teacher_weights())
    args = ("--teacher-args", *tiny_args(), "--image-size", "32x48", "--workers", 1)
    return bench.cli("cache-teacher", "--images", images, *teacher, *args, *plain, *flags, "--out", out)


def features(out: Path) -> list[npt.NDArray[np.float32]]:
    """Patch tokens of all images of a cache, in its order."""
    cache = Cache.open(out)
    return [cache.read(0, index).patches for index in range(cache.num_samples)]


def same_features(one: Path, other: Path) -> bool:
    """Whether two caches hold the same images' features, in whatever order."""
    first, second = (sorted(map(bytes, features(out))) for out in (one, other))
    return first == second
