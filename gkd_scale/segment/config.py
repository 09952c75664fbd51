"""The options of stage 2 and of ``gkd-scale evaluate``. Light: nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkd_scale.cache.config import TEACHER_DTYPES, TEACHER_NORMS, parse_size
from gkd_scale.config import option, section
from gkd_scale.errors import ConfigError

if TYPE_CHECKING:
    from gkd_scale.types import Size

DEFAULT_BACKBONE = Path("runs/stage1")
DEFAULT_STUDENT = "demo_student"
DEFAULT_TRAIN = "embedded:runs/demo-data/source/train"
DEFAULT_VAL = "embedded:runs/demo-data/source/val"
_RGB = ("R", "G", "B")
_EXAMPLE = "for example night=embedded:runs/demo-data/unseen_night"
_HEAD_LR = {"linear": 5e-3, "mask2former": 1e-4}
_LAST = re.compile(r"last([1-9]\d*)")


@dataclass
class HeadOptimConfig:
    """optimizer: AdamW with a polynomial schedule"""

    lr: float | None = option(
        None,
        "peak learning rate (default: 5e-3 linear, 1e-4 mask2former, 3e-3 other heads; at most 1e-3 where "
        "--adapt trains the backbone too)",
        flag="--lr",
    )
    weight_decay: float = option(0.05, "decoupled weight decay")
    betas: tuple[float, float] = option((0.9, 0.999), "AdamW's betas")
    power: float = option(0.9, "exponent of the polynomial decay")
    warmup: float = option(0.05, "share of the steps that the learning rate rises")
    warmup_lr: float = option(1e-6, "learning rate of the first step")


@dataclass
class AugmentConfig:
    """augmentation: the same for image and label"""

    scale: tuple[float, float] = option(
        (0.5, 2.0), "random scale; at 1 the image just covers the training size"
    )
    flip: float = option(0.5, "probability of a horizontal flip")
    cat_max_ratio: float = option(0.75, "draw another crop while one class fills more than this share")
    photometric: float = option(1.0, "strength of brightness, contrast, saturation and hue (0 = off)")

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale {low} {high} is not a range of positive numbers, smallest first")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip} is not a probability")
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio {self.cat_max_ratio} is not in (0, 1]")
        if not 0 <= self.photometric <= 2:
            raise ValueError(f"photometric {self.photometric} is not in [0, 2]")


METHODS = {
    "none": 1.0,
    "vanilla-kd": 1.0,
    "cwd": 1.0,
    "af-dcd": 1.0,
    "vitkd": 1.0,
    "proteus": 2.0,
    "g2sd": 1.0,
}
"""Single-stage methods, and how many student passes (forward and backward) they take for an image."""


@dataclass
class MethodConfig:
    """method: single-stage methods to compare with; encoder and head learn together"""

    name: str | None = option(
        None,
        "train the encoder too, with this method's loss beside the task's; none: with the task's alone",
        flag="--method",
        choices=tuple(METHODS),
    )
    args: dict[str, Any] = option({}, "arguments of the method, for example weight=10", flag="--method-args")
    teacher: str | None = option(
        None, "timm name of the frozen teacher, run on every batch", flag="--teacher", metavar="NAME"
    )
    teacher_weights: Path | None = option(
        None, "its weights (default: timm's)", flag="--teacher-weights", metavar="FILE"
    )
    teacher_args: dict[str, Any] = option({}, "arguments of its timm model", flag="--teacher-args")
    teacher_layer: tuple[int, ...] | None = option(
        None,
        "its feature level; several are concatenated (default: the last, after the final norm)",
        flag="--teacher-layer",
        metavar="I",
    )
    teacher_patch: int | None = option(
        None, "resample its patch embedding to this size", flag="--teacher-patch"
    )
    teacher_resize: str = option(
        "pi", "how, as --patch-resize of cache-teacher", flag="--teacher-resize", choices=("pi", "bicubic")
    )
    teacher_dtype: str = option("float32", "its arithmetic", flag="--teacher-dtype", choices=TEACHER_DTYPES)
    teacher_mean: tuple[float, float, float] | None = option(
        None, "of its pixels in 0..1 (default: what timm says)", flag="--teacher-mean", metavar=_RGB
    )
    teacher_std: tuple[float, float, float] | None = option(
        None, "likewise", flag="--teacher-std", metavar=_RGB
    )
    teacher_norm: str = option(
        "none",
        "conditioning of its features, as stage 1 has it; the moments are of the training images",
        flag="--teacher-norm",
        choices=TEACHER_NORMS,
    )
    whiten_power: float = option(0.5, "as stage 1 has it", flag="--whiten-power", metavar="P")
    teacher_head: Path | None = option(
        None,
        "stage-2 run on the frozen teacher: gives the logits that g2sd needs, and cwd and af-dcd can use",
        flag="--teacher-head",
        metavar="RUN",
    )

    @property
    def distils(self) -> bool:
        """Whether there is a loss beside the task's."""
        return self.name not in (None, "none")

    def __post_init__(self) -> None:
        if not self.distils and (self.teacher is not None or self.teacher_head is not None or self.args):
            raise ConfigError(
                "a teacher or arguments of a method are given, but no method that uses them",
                f"give --method, one of {', '.join(list(METHODS)[1:])}",
            )


@dataclass
class InferenceConfig:
    """inference: how an image is looked at"""

    mode: str | None = option(
        None,
        "the whole image at once, or windows whose overlaps are averaged (default: whole; evaluate: as the "
        "run was validated)",
        flag="--inference",
        choices=("whole", "slide"),
    )
    window: str | None = option(
        None, "size of the windows (default: the training size)", flag="--window", metavar="N|HxW"
    )
    stride: str | None = option(
        None,
        "from one window to the next (default: two thirds of the window)",
        flag="--stride",
        metavar="N|HxW",
    )

    def __post_init__(self) -> None:
        if (self.window or self.stride) and self.mode != "slide":
            raise ValueError("a window or stride is for windows: add --inference slide")

    def windows(self, image_size: Size) -> tuple[Size, Size] | None:
        """Size and stride of the windows; None for the whole image. ConfigError where they leave gaps."""
        if self.mode != "slide":
            return None
        window = parse_size(self.window) if self.window else image_size
        usual = (round(window[0] * 2 / 3), round(window[1] * 2 / 3))
        stride = parse_size(self.stride) if self.stride else usual
        if stride[0] > window[0] or stride[1] > window[1]:
            raise ConfigError(
                f"--stride {self.stride} leaves gaps between windows of {window[0]}x{window[1]}",
                "use a stride of at most the window",
            )
        return window, stride


@dataclass
class Stage2Config:
    """Train a segmentation head on a frozen backbone."""

    ds_config: str = option("zero2.json", "DeepSpeed JSON: a path, or the name of a bundled one")
    backbone: Path | None = option(
        None,
        f"stage-1 run, weights file or 'pretrained' (default {DEFAULT_BACKBONE}; --adapt full: scratch)",
        metavar="RUN|FILE",
    )
    student: str | None = option(None, "timm name; needed where --backbone is a weights file or from scratch")
    student_args: dict[str, Any] = option({}, "arguments of the timm model")
    mean: tuple[float, float, float] | None = option(
        None, "of pixels in 0..1, where a weights file was trained with another than timm says", metavar=_RGB
    )
    std: tuple[float, float, float] | None = option(None, "likewise", metavar=_RGB)
    adapt: str = option(
        "frozen",
        "train only the head (frozen), the backbone's last K blocks too (last4), or all (full, as every "
        "--method does)",
        metavar="frozen|lastK|full",
    )
    train: list[str] = option(
        [], f"source-domain dataset, repeatable (default {DEFAULT_TRAIN})", metavar="ADAPTER:PATH"
    )
    train_weights: tuple[float, ...] | None = option(
        None, "proportions in which several --train are mixed (default: all images alike)", metavar="X"
    )
    label_fraction: str = option("1", "share of each --train that is used, for example 1/16; subsets nest")
    sampling: str = option(
        "uniform",
        "every image once an epoch, or images of rare classes more often",
        choices=("uniform", "rare-class"),
    )
    sampling_temperature: float = option(0.01, "of rare-class sampling: the lower, the rarer")
    val: list[str] = option(
        [],
        f"in-domain validation, repeatable: the mean of their mIoU decides (default {DEFAULT_VAL})",
        metavar="ADAPTER:PATH",
    )
    check: bool = option(True, "read every training and validation sample once before training")
    head: str = option("linear", "segmentation head: linear, fpn or mask2former")
    head_args: dict[str, Any] = option({}, "arguments of the head, for example width=64, or size=small")
    image_size: str = option("96x128", "training size, and the size that inference works at", metavar="N|HxW")
    steps: int = option(400, "optimizer steps")
    global_batch: int | None = option(None, "images an optimizer step, over all ranks (default 16)")
    optim: HeadOptimConfig = section(HeadOptimConfig)
    augment: AugmentConfig = section(AugmentConfig)
    method: MethodConfig = section(MethodConfig)
    inference: InferenceConfig = section(InferenceConfig)
    out: Path = option(Path("runs/stage2"), "run folder; the same command again resumes")
    save_every: int = option(200, "steps between checkpoints")
    keep: int = option(2, "newest checkpoints kept")
    keep_every: int | None = option(None, "keep each N-th step's checkpoint too", metavar="N")
    val_every: int = option(100, "steps between validations; the best one is what the run exports")
    workers: int = option(2, "threads that read and augment, a rank")
    seed: int = option(0, "decides head, order and augmentation")

    def __post_init__(self) -> None:
        self.inference.windows(self.size())
        if self.method.name is not None:
            if self.adapt not in ("frozen", "full"):
                raise ValueError(f"adapt {self.adapt} and --method: a method trains the whole encoder")
            self.adapt = "full"
        if self.adapt not in ("frozen", "full") and not _LAST.fullmatch(self.adapt):
            raise ValueError(f"adapt is '{self.adapt}': it is frozen, full, or last4 for the last 4 blocks")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {self.std} is not above 0")
        if bool(self.train) != bool(self.val):
            missing, given = ("--val", "--train") if self.train else ("--train", "--val")
            raise ConfigError(
                f"{given} is given without {missing}", "give both, or neither for the embedded data"
            )
        self.label_share()
        weights, sources = self.train_weights, len(self.train_sets())
        if weights is not None and (len(weights) != sources or min(weights) <= 0):
            raise ValueError(f"train_weights {weights}: give a positive number for each of {sources} --train")
        if self.sampling_temperature <= 0:
            raise ValueError(f"sampling_temperature {self.sampling_temperature} is not above 0")
        for name in ("steps", "save_every", "keep", "keep_every", "val_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")

    def size(self) -> tuple[int, int]:
        """Height and width of the training images."""
        return parse_size(self.image_size)

    def label_share(self) -> Fraction:
        """``label_fraction`` as a number in (0, 1]."""
        try:
            share = Fraction(self.label_fraction)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share <= 1:
            raise ValueError(f"label_fraction '{self.label_fraction}' is not in (0, 1], for example 1/16")
        return share

    def last_blocks(self) -> int:
        """How many of a frozen backbone's last blocks are trained with the head."""
        found = _LAST.fullmatch(self.adapt)
        return int(found[1]) if found else 0

    def peak_lr(self) -> float:
        """``optim.lr``, or what suits the head: the smaller it is, the more."""
        if self.optim.lr is not None:
            return self.optim.lr
        head = _HEAD_LR.get(self.head, 3e-3)
        return head if self.adapt == "frozen" else min(head, 1e-3)

    def train_sets(self) -> list[str]:
        return self.train or [DEFAULT_TRAIN]

    def val_sets(self) -> list[str]:
        return self.val or [DEFAULT_VAL]

    def backbone_ref(self) -> Path | None:
        """Where the backbone's weights are; None for from scratch."""
        if self.backbone is None and self.adapt != "full":
            return DEFAULT_BACKBONE
        return self.backbone

    def student_name(self) -> str | None:
        """The student's timm name; None where the run folder says it."""
        return self.student or (DEFAULT_STUDENT if self.backbone_ref() is None else None)


@dataclass
class TeacherProbeConfig:
    """Know a teacher before it is cached: which layer, which conditioning, what a student can hope for."""

    teacher: str = option("demo_teacher", "timm name", metavar="NAME")
    teacher_weights: Path | None = option(None, "its weights (default: timm's)", metavar="FILE")
    teacher_args: dict[str, Any] = option({}, "arguments of timm.create_model")
    patch_size: int | None = option(None, "resample its patch embedding to this size", metavar="N")
    mean: tuple[float, float, float] | None = option(
        None, "of pixels in 0..1 (default: what timm says)", metavar=_RGB
    )
    std: tuple[float, float, float] | None = option(None, "likewise", metavar=_RGB)
    train: list[str] = option(
        [DEFAULT_TRAIN], "labelled source images to fit on, repeatable", metavar="ADAPTER:PATH"
    )
    val: list[str] = option(
        [DEFAULT_VAL], "labelled images of the source's own domain to score on", metavar="ADAPTER:PATH"
    )
    image_size: str = option("96x128", "image size in pixels, as the cache will have it", metavar="N|HxW")
    images: int = option(300, "most images of each that are used, evenly spread")
    batch_size: int = option(8, "images that go through the teacher together")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    out: Path = option(Path("runs/probe"), "folder for probe.json and probe.png")

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}", f"give --{name.replace('_', '-')} N")
        for ref in (*self.train, *self.val):
            if any(part.startswith("unseen") for part in Path(ref.partition(":")[2].partition("@")[0]).parts):
                raise ConfigError(
                    f"{ref} is an unseen domain, and a layer that is chosen on it is no longer tested by it",
                    "give images of the source's own domain",
                )


@dataclass(kw_only=True)
class LookConfig:
    """How a finished segmenter looks at images: what evaluate and predict have in common."""

    run: Path = option(help="folder of a finished stage-2 run", positional=True)
    inference: InferenceConfig = section(InferenceConfig)
    tta_scales: tuple[float, ...] = option(
        (1.0,), "average predictions over these sizes of the image; 1 is the training size", metavar="X"
    )
    tta_flip: bool = option(False, "average predictions over the image and its mirror image")
    batch_size: int = option(8, "images or windows of one size that go through the model together")
    workers: int = option(2, "threads that read and resize")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")

    def __post_init__(self) -> None:
        if not self.tta_scales or min(self.tta_scales) <= 0:
            raise ValueError(f"tta_scales {self.tta_scales} are not sizes above 0")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: it must be at least 1")


@dataclass(kw_only=True)
class PredictConfig(LookConfig):
    """Predict the classes of any images with a stage-2 run."""

    images: str = option(
        help="a folder, a pattern with *, a list (.txt, .parquet), tars, a URL, or ADAPTER:PATH",
        metavar="PATH|GLOB|URL|ADAPTER:PATH",
    )
    out: Path = option(help="folder of the predictions; the same command again goes on where it stopped")
    overlay: bool = option(False, "write each image under its classes' colours too")
    save_logits: bool = option(False, "write each image's logits too, at its size: 2 bytes a class and pixel")


@dataclass(kw_only=True)
class EvaluateConfig(LookConfig):
    """Measure the mIoU of a stage-2 run, one domain for each --data."""

    data: list[str] = option([], "a domain, repeatable", metavar="NAME=ADAPTER:PATH")
    json: Path | None = option(None, "where the numbers go (default RUN/evaluation.json)", metavar="FILE")

    def domains(self) -> dict[str, str]:
        """Domain names to ``ADAPTER:PATH``; ConfigError for none, a malformed or a repeated one."""
        if not self.data:
            raise ConfigError(
                "no domain to evaluate on",
                "give --data NAME=ADAPTER:PATH, for example night=embedded:runs/demo-data/unseen_night",
            )
        return named_domains(self.data)


def named_domains(data: Sequence[str]) -> dict[str, str]:
    """Texts ``NAME=ADAPTER:PATH`` as a mapping; ConfigError for a malformed or repeated one."""
    found: dict[str, str] = {}
    for text in data:
        name, equals, ref = text.partition("=")
        if not (equals and name.strip() and ref.strip()):
            raise ConfigError(
                f"--data '{text}' is not NAME=ADAPTER:PATH", "for example dusk=camvid:camvid/unseen_dusk"
            )
        if name in found:
            raise ConfigError(f"--data names the domain '{name}' twice", "give each domain a name of its own")
        found[name] = ref
    return found
