"""The options of stage 1. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gkd_scale import config, ranges
from gkd_scale.cache.config import TEACHER_NORMS
from gkd_scale.config import option, section
from gkd_scale.distill.losses import DISTANCES
from gkd_scale.distill.objectives.registry import OBJECTIVES
from gkd_scale.engine import loggers
from gkd_scale.errors import ConfigError
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
class OptimConfig:
    """optimizer: AdamW with warmup and cosine schedule"""

    lr: float | None = option(
        None,
        "peak learning rate (default: 5e-4 · global batch / 512, at least 2.5e-4, from scratch 1e-3)",
        flag="--lr",
        within=ranges.PEAK_RATE,
    )
    weight_decay: float = option(0.05, "decoupled weight decay", within=ranges.WEIGHT_DECAY)
    betas: tuple[float, float] = option((0.9, 0.999), "AdamW's betas", within=ranges.DECAY)
    warmup: float = option(0.05, "share of the steps that the learning rate rises", within=ranges.WARMUP)
    warmup_lr: float = option(1e-6, "learning rate of the first step", within=ranges.RATE)
    layer_decay: float = option(
        1.0,
        "factor on the learning rate for each layer further from the output",
        flag="--layer-decay",
        within=ranges.SOME,
    )
    final_lr: float = option(1e-5, "learning rate of the last step", within=ranges.RATE)

    def __post_init__(self) -> None:
        for name in ("warmup_lr", "final_lr"):
            rate, usual = getattr(self, name), type(self).__dataclass_fields__[name].default
            if self.lr is not None and rate > self.lr and rate != usual:
                raise ConfigError(
                    f"'optim.{name}' is {rate:g}, above the peak learning rate, {self.lr:g}",
                    "give a smaller one",
                )


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


@dataclass
class StudentConfig:
    """One of several students, an item of ``student`` in YAML. What it leaves out is as the flags say."""

    name: str = option(help="timm name")
    folder: str | None = option(None, "folder of its run below OUT (default: its name)")
    args: dict[str, Any] | None = option(None, "arguments of timm.create_model", keys=TIMM_ARGUMENTS)
    weights: str | None = option(None, "weights file, stage-1 run, or 'pretrained'")
    drop_path: float | None = option(None, "stochastic depth", within=ranges.DROP_PATH)


LIVE = "live"
"""The name of a teacher that is run, not read."""


@dataclass
class Stage1Config:
    """Distil a student from teacher features, without a label."""

    ds_config: str = option("zero2.json", "DeepSpeed JSON: a path, or the name of a bundled one")
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
    teacher_norm: str = option(
        "whiten",
        "conditioning of the teacher's tokens: layer is (x - mean)/std over a token's channels; the others "
        "use the cache's moments, by channel (standard), by principal component (whiten), rotated (phi-s)",
        choices=TEACHER_NORMS,
    )
    whiten_power: float = option(
        0.5,
        "with whiten: eigenvalues to the power -P/2; 1 makes all directions equally loud",
        metavar="P",
        within=ranges.POWER,
    )
    objective: str = option(
        next(iter(OBJECTIVES)),
        "what is minimised: " + "; ".join(f"{name}, {row.title}" for name, row in OBJECTIVES.items()),
        choices=OBJECTIVES,
    )
    student: list[str | dict[str, Any]] = option(
        ["demo_student"],
        "timm name of the student; repeat it to train several from the same batches",
        metavar="NAME",
    )
    student_args: dict[str, Any] = option({}, "arguments of timm.create_model", keys=TIMM_ARGUMENTS)
    student_weights: str | None = option(
        None, "weights file, stage-1 run, or 'pretrained' (default: from scratch)", metavar="FILE|RUN"
    )
    student_resize: str = option(
        "pi",
        "how a patch embedding gets another patch size: pseudo-inverse, or as an image",
        choices=("pi", "bicubic"),
    )
    drop_path: float = option(0.0, "stochastic depth of the student", within=ranges.DROP_PATH)
    student_jitter: float = option(
        0.0,
        "strength of brightness, contrast and saturation jitter that only the student sees",
        within=ranges.STRENGTH,
    )
    out: Path = option(Path("runs/stage1"), "run folder; the same command again resumes")
    steps: int | None = option(
        None, "optimizer steps (default 400, or what --epochs gives)", within=ranges.COUNT
    )
    epochs: float | None = option(None, "passes over the caches, instead of --steps", within=ranges.EPOCHS)
    global_batch: int | None = option(
        None, "images an optimizer step, over all ranks (default 32)", within=ranges.SIZE
    )
    ema: float = option(
        0.99996, "decay of the moving average that is exported; 0 exports the last step", within=ranges.DECAY
    )
    save_every: int = option(500, "steps between checkpoints", within=ranges.COUNT)
    keep: int = option(2, "newest checkpoints kept", within=ranges.COUNT)
    keep_every: int | None = option(
        None, "keep each N-th step's checkpoint too", metavar="N", within=ranges.COUNT
    )
    grad_checkpointing: bool = option(False, "compute activations again in the backward pass: less memory")
    compile: bool = option(False, "compile the student with torch.compile")
    workers: int = option(2, "threads that read and decode, a rank", within=ranges.THREADS)
    mirror: Path = option(
        Path("~/.cache/gkd-scale"),
        "where caches behind a URL are mirrored while they are used",
        metavar="DIR",
    )
    mirror_gb: float = option(50.0, "GB of shards that a mirror keeps", within=ranges.GIGABYTES)
    on_corrupt: str = option(
        "stop", "a damaged sample: stop, or skip it (the next one stands in)", choices=("stop", "skip")
    )
    ledger: bool = option(False, "write which sample went into which step to OUT/ledger")
    log: list[str] = option(list(loggers.DEFAULT), loggers.HELP, choices=loggers.CHOICES)
    window: int = option(4, "shards that samples are shuffled across at a time", within=ranges.SIZE)
    seed: int = option(0, "decides initialisation, order and masks", within=ranges.SEED)
    loss: LossConfig = section(LossConfig)
    qsd: QsdConfig = section(QsdConfig)
    mask: MaskConfig = section(MaskConfig)
    optim: OptimConfig = section(OptimConfig)

    def __post_init__(self) -> None:
        self.loggers()
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("both --steps and --epochs are given", "give one of them")
        if self.live and self.teacher != LIVE:
            raise ConfigError("--live is given without --teacher live", "give both, or a cache alone")
        if self.teacher == LIVE and self.cache:
            raise ConfigError("both --teacher live and --cache are given", "give one of them")
        OBJECTIVES[self.objective].check(self)
        self.each()

    def loggers(self) -> list[str]:
        """The loggers of ``log``; ConfigError for none beside others."""
        return loggers.chosen(self.log)

    def each(self) -> list[Stage1Config]:
        """A config for each student alone: itself for one by name, else with ``out`` a folder below OUT."""
        if len(self.student) == 1 and isinstance(self.student[0], str):
            return [self]
        alone = [self._alone(item) for item in self.student]
        folders = [one.out for one in alone]
        for twice in {str(folder) for folder in folders if folders.count(folder) > 1}:
            raise ConfigError(f"two students would be trained in {twice}", "give one of them a 'folder'")
        return alone

    def _alone(self, item: str | dict[str, Any]) -> Stage1Config:
        said = config.build(StudentConfig, {"name": item} if isinstance(item, str) else item, "a student")
        return replace(
            self,
            student=[said.name],
            student_args=self.student_args if said.args is None else said.args,
            student_weights=said.weights or self.student_weights,
            drop_path=self.drop_path if said.drop_path is None else said.drop_path,
            out=self.out / (said.folder or said.name.replace("/", "_"))
            if len(self.student) > 1
            else self.out,
        )
