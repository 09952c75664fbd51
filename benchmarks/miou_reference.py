"""mIoU against two implementations that we did not write: torchmetrics and Cityscapes' official evaluation.

Cases: random maps, and maps made to trip a metric up (classes absent from truth, prediction or both; all
void; void predicted; one class; images of different sizes in one domain). For each, the mean and the IoU of
every class must equal the references' to 1e-9.

The references live in an environment of their own, because cityscapesscripts drags in an old ``typing``::

    python -m venv references && references/bin/pip install cityscapesscripts torchmetrics
    python benchmarks/miou_reference.py references/bin/python

torchmetrics (``MulticlassJaccardIndex``, macro) rounds counts to float32 before it divides; here it is made
to use float64. It knows no void prediction, so those cases are left to Cityscapes. Where no pixel counts,
torchmetrics and Cityscapes agree with us in that there is no mean, each in its own way (NaN).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TRAIN_TO_ID = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
"""Cityscapes ids of the 19 classes."""
CLASSES, VOID = len(TRAIN_TO_ID), 255
RANDOM = 40
TOLERANCE = 1e-9

Pair = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]
"""Prediction and truth, train ids, (H, W) uint8."""


def cases() -> Iterator[tuple[str, list[Pair]]]:
    """Domains by name; each is a list of images."""
    from gkd_scale.randomness import generator

    def draw(rng: np.random.Generator, values: list[int], size: tuple[int, int]) -> Any:
        return rng.choice(np.array(values, np.uint8), size)

    everything = list(range(CLASSES))
    for index in range(RANDOM):
        rng = generator("benchmark", "miou", index)
        images = []
        classes, guesses = (sorted(set(rng.integers(0, CLASSES, rng.integers(1, 30)).tolist())) for _ in "ab")
        for _ in range(rng.integers(1, 5)):
            size = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
            truth = draw(rng, [*classes, VOID], size)
            guess = np.where(rng.random(size) < rng.random(), truth, draw(rng, guesses, size))
            images.append((np.where(guess == VOID, guesses[0], guess).astype(np.uint8), truth))
        yield f"random {index}", images
    rng, size = generator("benchmark", "miou", "adversarial"), (37, 53)
    any_map, void = draw(rng, everything, size), np.full(size, VOID, np.uint8)
    some = draw(rng, [*everything, VOID], size)
    yield "absent from truth", [(draw(rng, [0, 1, 2], size), draw(rng, [0, 1], size))]
    yield "absent from prediction", [(draw(rng, [0, 1], size), draw(rng, [0, 1, 2], size))]
    yield "absent from both", [(draw(rng, [3, 17], size), draw(rng, [3, 17], size))]
    yield "disjoint classes", [(draw(rng, [4, 5], size), draw(rng, [6, 7], size))]
    yield "predicted on void alone", [(np.where(some == VOID, 18, 0).astype(np.uint8), np.minimum(some, 255))]
    yield "all void", [(any_map, void)]
    yield "one image all void", [(any_map, void), (any_map, some)]
    yield "one class", [(np.zeros(size, np.uint8), np.zeros(size, np.uint8))]
    yield "one class, all wrong", [(np.ones(size, np.uint8), np.zeros(size, np.uint8))]
    yield "one pixel", [(any_map[:1, :1], np.zeros((1, 1), np.uint8))]
    sizes = [(1, 1), (200, 3), (64, 48), (1024, 512)]
    yield "sizes that differ", [(draw(rng, everything, s), draw(rng, [*everything, VOID], s)) for s in sizes]
    yield "void predicted", [(draw(rng, [*everything, VOID], size), some)]
    yield "only void predicted", [(void, some)]
    yield "void predicted of one class", [(np.where(some == 3, VOID, some).astype(np.uint8), some)]


def ours(images: list[Pair]) -> dict[str, Any]:
    import torch

    from gkd_scale.segment.metrics import Confusion

    confusion = Confusion(CLASSES)
    for prediction, truth in images:
        confusion.update(torch.from_numpy(prediction.copy()), torch.from_numpy(truth.copy()))
    return {"miou": confusion.miou(), "iou": confusion.iou().tolist()}


def by_torchmetrics(images: list[Pair]) -> dict[str, Any]:
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex

    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    scores = {}
    for key, average in (("miou", "macro"), ("iou", "none")):
        metric = MulticlassJaccardIndex(CLASSES, average=average, ignore_index=VOID, zero_division=math.nan)
        if average == "macro":
            metric = MulticlassJaccardIndex(CLASSES, average=average, ignore_index=VOID)
        for prediction, truth in images:
            metric.update(*(torch.from_numpy(array.astype(np.int64))[None] for array in (prediction, truth)))
        scores[key] = metric.compute().tolist()
    return scores


def by_cityscapes(images: list[Pair]) -> dict[str, Any]:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import id2label

    table = np.zeros(256, np.uint8)
    table[:CLASSES] = TRAIN_TO_ID  # void becomes 0, 'unlabeled'
    official.args.evalInstLevelScore, official.args.quiet, official.args.JSONOutput = False, True, False
    with tempfile.TemporaryDirectory() as folder:
        files: tuple[list[str], list[str]] = ([], [])
        for index, pair in enumerate(images):
            for value, names, kind in zip(pair, files, ("prediction", "labelIds"), strict=True):
                names.append(f"{folder}/{index}_{kind}.png")
                Image.fromarray(table[value]).save(names[-1])
        scores = official.evaluateImgLists(*files, official.args)
    return {
        "miou": scores["averageScoreClasses"],
        "iou": [scores["classScores"][id2label[value].name] for value in TRAIN_TO_ID],
    }


def reference(folder: Path) -> None:
    """Print the references' results for each case in ``folder``; runs in their environment."""
    answers: dict[str, Any] = {}
    for file in sorted(folder.glob("*.npz")):
        arrays = np.load(file)
        images = [(arrays[f"prediction{i}"], arrays[f"truth{i}"]) for i in range(len(arrays.files) // 2)]
        answers[file.stem] = {"cityscapes": by_cityscapes(images)}
        if not any((prediction == VOID).any() for prediction, _ in images):
            answers[file.stem]["torchmetrics"] = by_torchmetrics(images)
    print("\n" + json.dumps(answers))


def difference(mine: Any, theirs: Any) -> float:
    """The greatest difference between two results; infinite if only one of two numbers is NaN."""
    a, b = (np.array([result["miou"], *result["iou"]], np.float64) for result in (mine, theirs))
    if (np.isnan(a) != np.isnan(b)).any():
        return math.inf
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def main() -> int:
    from gkd_scale import console

    python = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        mine = {}
        for name, images in cases():
            mine[name] = ours(images)
            arrays = {f"prediction{i}": p for i, (p, _) in enumerate(images)}
            arrays |= {f"truth{i}": t for i, (_, t) in enumerate(images)}
            np.savez(Path(folder) / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        command = [python, __file__, "--reference", folder]
        process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answers = json.loads(process.stdout.splitlines()[-1])
    worst: dict[str, tuple[float, str]] = {}
    for name, theirs in answers.items():
        for who, result in theirs.items():
            worst[who] = max(worst.get(who, (0.0, name)), (difference(mine[name], result), name))
    for who, (greatest, name) in worst.items():
        count = sum(who in theirs for theirs in answers.values())
        console.out.print(f"{who}: {count} cases, greatest difference {greatest:.1e} ('{name}')")
    return 0 if all(greatest <= TOLERANCE for greatest, _ in worst.values()) else 1


if __name__ == "__main__":
    if sys.argv[1] == "--reference":
        reference(Path(sys.argv[2]))
    else:
        sys.exit(main())
