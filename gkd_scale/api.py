"""The commands as functions, for a notebook or a script: one process, on a GPU if there is one.

Options have the names of the flags, with ``_`` for ``-``; those of a section are a mapping::

    cache = gkd_scale.cache_teacher("photos", "vit_base_patch14_dinov2.lvd142m", "caches/photos",
                                    image_size="224", views=4)
    backbone = gkd_scale.distill("caches/photos", "vit_tiny_patch16_224", "runs/1a",
                                 epochs=20, optim={"lr": 1e-3})
    segmenter = gkd_scale.train_head("runs/1a", "folder:city/train", "folder:city/val", "runs/head",
                                     head="fpn")
    scores = gkd_scale.evaluate("runs/head", {"night": "folder:elsewhere/night"})

A function that is called again goes on where it stopped, as its command does. All raise the errors of
:mod:`gkd_scale.errors`: ConfigError for an option that does not exist or does not fit.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from gkd_scale import config
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.reader import Cache
from gkd_scale.cache_commands import build_cache
from gkd_scale.distill.config import LIVE, Stage1Config
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.stop import Stopped
from gkd_scale.errors import ConfigError, RunError
from gkd_scale.models.backbone import Backbone, load_backbone
from gkd_scale.segment import evaluate as evaluation
from gkd_scale.segment.config import EvaluateConfig, Stage2Config
from gkd_scale.segment.evaluate import DomainResult
from gkd_scale.segment.finished import FinishedSegmenter, load_segmenter

_ALONE = str(Path(__file__).parent / "engine" / "alone.json")
"""The DeepSpeed config of one process: ZeRO 0."""
_LAUNCHERS = Path(__file__).parents[1] / "launchers"

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

References = str | Sequence[str]
"""One dataset as ADAPTER:PATH, or several."""


def cache_teacher(images: str | Path, teacher: str, out: str | Path, **options: Any) -> Cache:
    """Write the features of ``teacher`` on ``images`` to the cache ``out``, as ``gkd-scale cache-teacher``.

    Returns the cache. ``options`` are those of the command. Raises ConfigError, ModelError, DataError or
    CacheError.
    """
    values = {"images": str(images), "teacher": teacher, "out": str(out), **options}
    build_cache(config.build(CacheTeacherConfig, values, "cache_teacher"))
    return Cache.open(out)


def distill(
    caches: str | Path | Sequence[str | Path], student: str, out: str | Path, **options: Any
) -> Backbone:
    """Stage 1 in this process: ``student`` learns from the teacher's features in one cache or several.

    Writes the run ``out``. Returns the student as a backbone. ``options`` are those of
    ``launchers/stage1.py``. Raises ConfigError, CacheError, ModelError or RunError; RunError too if it was
    asked to stop; the same call then goes on.
    """
    from gkd_scale.distill import stage1

    folders = [caches] if isinstance(caches, (str, Path)) else list(caches)
    values = {"cache": folders, "student": [student], "out": str(out), "ds_config": _ALONE, **options}
    cfg = config.build(Stage1Config, values, "distill")
    if cfg.source.teacher == LIVE or not cfg.source.cache:
        raise ConfigError("distill reads a cache, and none is given", "make one with cache_teacher")
    _train_alone(partial(stage1.train, cfg))
    return load_backbone(out)


def train_head(
    backbone: str | Path, train: References, val: References, out: str | Path, **options: Any
) -> FinishedSegmenter:
    """Stage 2 in this process: a segmentation head on the frozen ``backbone``, a run or a weights file.

    ``train`` and ``val`` are datasets, ``ADAPTER:PATH``. Returns the segmenter. ``options`` are those of
    ``launchers/stage2.py``. Raises ConfigError, DataError, ModelError or RunError, as :func:`distill`.
    """
    from gkd_scale.segment import stage2

    datasets = {"train": _as_list(train), "val": _as_list(val)}
    values = {"backbone": str(backbone), **datasets, "out": str(out), "ds_config": _ALONE, **options}
    cfg = config.build(Stage2Config, values, "train_head")
    _train_alone(partial(stage2.run, cfg))
    return load_segmenter(out)


def evaluate(run: str | Path, data: Mapping[str, str], **options: Any) -> dict[str, DomainResult]:
    """mIoU and IoU of each class, 0..100, of a stage-2 run on domains, ``{NAME: "ADAPTER:PATH"}``.

    As ``gkd-scale evaluate``: prints the table and writes ``evaluation.json``. Raises ConfigError, RunError,
    ModelError or DataError.
    """
    domains = [f"{name}={ref}" for name, ref in data.items()]
    return evaluation.evaluate(
        config.build(EvaluateConfig, {"run": str(run), "data": domains, **options}, "evaluate")
    )


def _as_list(references: References) -> list[str]:
    return [references] if isinstance(references, str) else list(references)


def _train_alone(train: Callable[[Runtime, Path], object]) -> None:
    """Train as a world of one, and leave the environment as it was."""
    with _environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about their internals
        runtime, variables = _world_of_one()
        os.environ.update(variables)
        try:
            train(runtime, _LAUNCHERS)
        except Stopped as stopped:
            raise RunError(
                f"stopped after step {stopped.step} of {stopped.steps}, with its checkpoint written",
                "the same call goes on",
            ) from None


@cache
def _world_of_one() -> tuple[Runtime, dict[str, str]]:
    """This process's only process group, which DeepSpeed remembers, and the variables that name it."""
    runtime = Runtime.start()
    atexit.register(runtime.stop)
    return runtime, {name: os.environ[name] for name in _VARIABLES}


@contextmanager
def _environment() -> Iterator[None]:
    """Inside the block, the environment has no launcher's variables; afterwards it is as it was."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            "this process is a rank of several (WORLD_SIZE), and this function trains in one",
            "use launchers/stage1.py and stage2.py",
        )
    variables = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(variables)
