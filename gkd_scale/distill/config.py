"""The options of stage 1. Light: nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gkd_scale import config, ranges
from gkd_scale.cache.config import MirrorConfig
from gkd_scale.config import again, inline, option, section
from gkd_scale.distill.losses import DISTANCES
from gkd_scale.distill.objectives.registry import OBJECTIVES
from gkd_scale.engine.config import OptimConfig, RunConfig
from gkd_scale.errors import ConfigError
from gkd_scale.models.config import ConditioningConfig
from gkd_scale.timm_arguments import TIMM_ARGUMENTS


def _term(path: str, help: str, *, projected: bool) -> Any:
    """The weight of a term of the loss, which is the row of the function at ``module:function``.

    The function takes patches (B, N, C) of student and teacher; ``projected``: the student's projected ones.
    """
    weight = option(0.0, f"weight of {help}", within=ranges.WEIGHT)
    return field(default=0.0, metadata={**weight.metadata, "term": path, "projected": projected})


@dataclass
class LossConfig:
    """loss: feature·L_feat + mask·L_mask + cls·L_cls + ladder·L_ladder; the paper has 1, 1, 1 and 0"""

    feature_weight: float = option(1.0, "weight of L_feat", within=ranges.WEIGHT)
    mask_weight: float = option(0.0, "weight of L_mask; 0 leaves the masked pass out", within=ranges.WEIGHT)
    cls_weight: float = option(0.1, "weight of L_cls", within=ranges.WEIGHT)
    distance: str = option(
        next(iter(DISTANCES)),
        "how projected tokens are compared: squared error, or half cosine and half smooth-L1",
        choices=DISTANCES,
    )
    ladder_weight: float = option(
        1.0,
        "weight of L_ladder: the levels before the last that stage 2 reads, projected to the same target",
        within=ranges.WEIGHT,
    )
    relation_weight: float = _term(
        "gkd_scale.distill.losses.relations:relations",
        "the squared error of the patches' Gram matrices (DINOv3)",
        projected=False,
    )
    contrast_weight: float = _term(
        "gkd_scale.distill.losses.contrast:contrast", "InfoNCE over an image's patches", projected=True
    )
    teacher_weights: dict[str, float] = option(
        {},
        "with several teachers: the weight of each one's losses (default: 1); 0 takes pixels alone",
        metavar="NAME=X",
        volatile=True,
    )
    teacher_drop: float = option(
        0.0,
        "with several teachers: the probability that one is left out for an image, never all",
        within=ranges.STRENGTH,
        volatile=True,
    )

    def __post_init__(self) -> None:
        for name, weight in self.teacher_weights.items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"'loss.teacher_weights.{name}' is {weight:g}", "give 0 or more")


@dataclass
class QsdConfig:
    """qsd: the form of query-based soft distillation"""

    form: str = option(
        "mse",
        "mse compares the projected student tokens with the teacher's; qsd gathers them by attention first, "
        "as published",
        choices=("mse", "qsd"),
    )
    init: str = option(
        "published", "zero-query starts from uniform attention", choices=("published", "zero-query")
    )
    scale: str = option(
        "published",
        "of the attention logits: published is 1, sqrt is 1/sqrt(Ct)",
        choices=("published", "sqrt"),
    )


def published() -> tuple[LossConfig, QsdConfig]:
    """The losses of the paper: L_feat + L_mask + L_cls by QSD (arXiv 2603.02554, equations 3 to 6)."""
    return LossConfig(mask_weight=1.0, cls_weight=1.0, ladder_weight=0.0), QsdConfig(form="qsd")


@dataclass
class MaskConfig:
    """mask: the second, masked pass"""

    ratio: float = option(0.5, "share of an image's patches that are masked", within=ranges.SHARE)
    probability: float = option(0.5, "share of a global batch's images that are masked", within=ranges.SHARE)


@dataclass
class Stage1OptimConfig(OptimConfig):
    """optimizer: with warmup and cosine schedule"""

    lr: float | None = again(
        OptimConfig,
        "lr",
        None,
        "peak learning rate (default: 5e-4 · global batch / 512, at least 2.5e-4, from scratch 1e-3)",
    )
    layer_decay: float = option(
        1.0,
        "factor on the learning rate for each layer further from the output",
        flag="--layer-decay",
        within=ranges.SOME,
    )
    final_lr: float = option(1e-5, "learning rate of the last step", within=ranges.RATE)


@dataclass
class CertifyConfig:
    """Measure what a codec does to the QSD loss, and store the certificate in the cache."""

    cache: Path = option(help="folder that cache-teacher wrote", positional=True)
    codec: str | None = option(None, "codec to judge (default: the cache's own)", metavar="NAME")
    reference: Path | None = option(
        None, "fp16 cache of the same teacher, if CACHE itself is not fp16", metavar="CACHE"
    )
    student: str = option("demo_student", "timm name of the student that is trained", metavar="NAME")
    student_args: dict[str, Any] = option({}, "arguments of timm.create_model", keys=TIMM_ARGUMENTS)
    steps: int = option(300, "training steps, for each of two students", within=ranges.COUNT)
    batch: int = option(16, "images a step", within=ranges.SIZE)
    lr: float = option(1e-3, "peak learning rate", within=ranges.PEAK_RATE)
    samples: int = option(64, "held-out samples that are measured", within=ranges.COUNT)
    codec_fit: int = option(
        256, "samples that a pcaK or tcB codec is fitted to", metavar="N", within=ranges.COUNT
    )
    seed: int = option(0, "seed of student, draws and masks", within=ranges.SEED)


LIVE = "live"
"""The name of a teacher that runs during the training, in place of a cache."""


@dataclass
class SourceConfig:
    """source: where the teacher's features come from"""

    cache: list[str | Path] = option(
        [],
        "teacher cache, folder or URL, repeatable (default: the embedded proxy images, cached under runs/)",
        metavar="CACHE",
    )
    teacher: str | None = option(
        None,
        "refuse caches of another teacher than this one; live: run the teacher of --live",
        metavar="NAME",
    )
    live: dict[str, Any] = option(
        {}, "with --teacher live: images=PATH image_size=224 teacher=NAME ..., as options of cache-teacher"
    )
    views: int | None = option(
        None,
        "views that epochs cycle through (default: all cached; live: new ones each epoch)",
        metavar="K",
        within=ranges.SIZE,
    )

    def __post_init__(self) -> None:
        if self.live and self.teacher != LIVE:
            raise ConfigError("--live is given without --teacher live", "give both, or a cache alone")
        if self.teacher == LIVE and self.cache:
            raise ConfigError("both --teacher live and --cache are given", "give one of them")


@dataclass
class WhitenedConfig(ConditioningConfig):
    """conditioning: what is done to the teacher's tokens before they are compared"""

    norm: str = again(ConditioningConfig, "norm", "whiten")


@dataclass
class StudentConfig:
    """student: the model that is trained, or several"""

    names: list[str | dict[str, Any]] = option(
        ["demo_student"],
        "the student: a timm name, hf:FOLDER or hf:OWNER/NAME; repeat it to train several from the same "
        "batches",
        metavar="NAME",
    )
    args: dict[str, Any] = option({}, "arguments of timm.create_model", keys=TIMM_ARGUMENTS)
    weights: str | None = option(
        None,
        "weights file, stage-1 run, or 'pretrained' (default: from scratch; of hf: the model's own)",
        metavar="FILE|RUN",
    )
    resize: str = option(
        "pi",
        "how a patch embedding gets another patch size: pseudo-inverse, or as an image",
        choices=("pi", "bicubic"),
    )
    drop_path: float = option(0.0, "stochastic depth of the student", within=ranges.DROP_PATH)
    jitter: float = option(
        0.0,
        "strength of brightness, contrast and saturation jitter that only the student sees",
        within=ranges.STRENGTH,
    )


@dataclass
class StudentItem:
    """One of several students, an item of ``student`` in YAML. What it leaves out is as the flags say."""

    name: str = option(help="timm name")
    folder: str | None = option(None, "folder of its run below OUT (default: its name)")
    args: dict[str, Any] | None = option(None, "arguments of timm.create_model", keys=TIMM_ARGUMENTS)
    weights: str | None = option(None, "weights file, stage-1 run, or 'pretrained'")
    drop_path: float | None = option(None, "stochastic depth", within=ranges.DROP_PATH)


@dataclass
class ReadingConfig:
    """reading: how caches are read"""

    mirror: MirrorConfig = inline(MirrorConfig, folder="mirror", gb="mirror_gb")
    on_corrupt: str = option(
        "stop",
        "a damaged sample: stop, or skip it (the next one stands in)",
        choices=("stop", "skip"),
        volatile=True,
    )
    ledger: bool = option(False, "write which sample went into which step to OUT/ledger", volatile=True)
    window: int = option(4, "shards that samples are shuffled across at a time", within=ranges.SIZE)


@dataclass
class Stage1RunConfig(RunConfig):
    """run: its folder, length, checkpoints and logs"""

    out: Path = again(RunConfig, "out", Path("runs/stage1"))
    save_every: int = again(RunConfig, "save_every", 500)
    steps: int | None = again(
        RunConfig, "steps", None, "optimizer steps (default: 400, or what --epochs gives)"
    )
    global_batch: int | None = again(
        RunConfig, "global_batch", None, "images an optimizer step, over all ranks (default: 32)"
    )
    epochs: float | None = option(
        None, "passes over the caches, instead of --steps", within=ranges.EPOCHS, volatile=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("both --steps and --epochs are given", "give one of them")


@dataclass
class Stage1Config:
    """Distil a student from teacher features, without a label."""

    source: SourceConfig = inline(SourceConfig)
    run: Stage1RunConfig = inline(Stage1RunConfig)
    conditioning: WhitenedConfig = inline(WhitenedConfig, norm="teacher_norm", power="whiten_power")
    objective: str = option(
        next(iter(OBJECTIVES)),
        "what is minimised: " + "; ".join(f"{name}, {row.title}" for name, row in OBJECTIVES.items()),
        choices=OBJECTIVES,
    )
    student: StudentConfig = inline(
        StudentConfig,
        names="student",
        args="student_args",
        weights="student_weights",
        resize="student_resize",
        jitter="student_jitter",
    )
    ema: float = option(
        0.99996, "decay of the moving average that is exported; 0 exports the last step", within=ranges.DECAY
    )
    grad_checkpointing: bool = option(
        False, "compute activations again in the backward pass: less memory", volatile=True
    )
    compile: bool = option(False, "compile student and losses as one, with torch.compile")
    reading: ReadingConfig = inline(ReadingConfig)
    loss: LossConfig = section(LossConfig)
    qsd: QsdConfig = section(QsdConfig)
    mask: MaskConfig = section(MaskConfig)
    optim: Stage1OptimConfig = section(Stage1OptimConfig)

    def __post_init__(self) -> None:
        OBJECTIVES[self.objective].check(self)
        self.per_student()

    def per_student(self) -> list[Stage1Config]:
        """A config for each student alone: itself for one by name, else with ``out`` a folder below OUT."""
        names = self.student.names
        if len(names) == 1 and isinstance(names[0], str):
            return [self]
        configs = [self._student_config(item) for item in names]
        folders = [cfg.run.out for cfg in configs]
        for duplicate in {str(folder) for folder in folders if folders.count(folder) > 1}:
            raise ConfigError(f"two students would be trained in {duplicate}", "give one of them a 'folder'")
        return configs

    def _student_config(self, item: str | dict[str, Any]) -> Stage1Config:
        student = config.build(StudentItem, {"name": item} if isinstance(item, str) else item, "a student")
        base, out = self.student, self.run.out
        return config.copy_with(
            self,
            student=[student.name],
            student_args=base.args if student.args is None else student.args,
            student_weights=student.weights or base.weights,
            drop_path=base.drop_path if student.drop_path is None else student.drop_path,
            out=out / (student.folder or student.name.replace("/", "_")) if len(base.names) > 1 else out,
        )
