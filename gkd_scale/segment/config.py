"""The options of stage 2 and of ``gkd-scale evaluate``. Light: this module does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gkd_scale import ranges
from gkd_scale.cache.config import parse_size
from gkd_scale.config import again, inline, option, section
from gkd_scale.engine.config import OptimConfig, RunConfig
from gkd_scale.errors import ConfigError
from gkd_scale.models.config import ConditioningConfig, DemoTeacherConfig, TeacherConfig
from gkd_scale.ranges import Range
from gkd_scale.segment.heads.registry import HEADS, check_head
from gkd_scale.segment.methods.registry import METHODS, check_method
from gkd_scale.timm_arguments import TIMM_ARGUMENTS

if TYPE_CHECKING:
    from gkd_scale.types import Size

DEFAULT_BACKBONE = Path("runs/stage1")
DEFAULT_STUDENT = "demo_student"
DEFAULT_TRAIN = "embedded:runs/demo-data/source/train"
DEFAULT_VAL = "embedded:runs/demo-data/source/val"
_RGB = ("R", "G", "B")
_LAST = re.compile(r"last([1-9]\d*)")


@dataclass
class Stage2OptimConfig(OptimConfig):
    """optimizer: with a polynomial schedule"""

    lr: float | None = again(
        OptimConfig,
        "lr",
        None,
        "peak learning rate (default: 5e-3 linear, 1e-4 mask2former, 3e-3 other heads; at most 1e-3 if "
        "--adapt trains the backbone too)",
    )
    power: float = option(
        0.9,
        "exponent of the polynomial decay",
        within=Range(gt=0, le=10, hint="an exponent, for example 0.9"),
    )


@dataclass
class AugmentConfig:
    """augmentation: the same for image and label"""

    scale: tuple[float, float] = option(
        (0.5, 2.0), "random scale; at 1 the image just covers the training size", within=ranges.SCALE
    )
    flip: float = option(0.5, "probability of a horizontal flip", within=ranges.SHARE)
    cat_max_ratio: float = option(
        0.75, "draw another crop while one class fills more than this share", within=ranges.SOME
    )
    photometric: float = option(
        1.0,
        "strength of brightness, contrast, saturation and hue (0 = off)",
        within=Range(ge=0, le=2, hint="a strength from 0 to 2"),
    )

    def __post_init__(self) -> None:
        low, high = self.scale
        if low > high:
            raise ConfigError(f"'augment.scale' is {low:g} {high:g}", "give the smallest first")


@dataclass
class MethodConfig:
    """method: single-stage methods to compare with; encoder and head learn together"""

    name: str | None = option(
        None,
        "train the encoder too, with this method's loss beside the task's; none: with the task's alone",
        flag="--method",
        choices=METHODS,
    )
    args: dict[str, Any] = option({}, "arguments of the method, for example weight=10", flag="--method-args")
    teacher: TeacherConfig = inline(
        TeacherConfig,
        short=True,
        name="teacher",
        weights="teacher_weights",
        args="teacher_args",
        layer="teacher_layer",
        patch_size="teacher_patch",
        patch_resize="teacher_resize",
        dtype="teacher_dtype",
        mean="teacher_mean",
        std="teacher_std",
    )
    conditioning: ConditioningConfig = inline(
        ConditioningConfig, short=True, norm="teacher_norm", power="whiten_power"
    )
    teacher_head: Path | None = option(
        None,
        "stage-2 run on the frozen teacher: gives the logits that g2sd needs, and cwd and af-dcd can use",
        flag="--teacher-head",
        metavar="RUN",
    )

    @property
    def distils(self) -> bool:
        """Whether the method has a loss beside the task's."""
        return self.name is not None and METHODS[self.name].make is not None

    def __post_init__(self) -> None:
        if not self.distils and (self.teacher.name is not None or self.teacher_head is not None or self.args):
            raise ConfigError(
                "a teacher or arguments of a method are given, but no method that uses them",
                f"give --method, one of {', '.join(name for name, row in METHODS.items() if row.make)}",
            )
        if self.name is not None and self.distils:
            check_method(self.name, self.args)


class Windows(NamedTuple):
    """Size of the windows, and the stride from one to the next, in pixels of the scaled image."""

    size: Size
    stride: Size


@dataclass
class InferenceConfig:
    """inference: the whole image at once, or windows"""

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
            raise ConfigError("a window or stride is given for whole images", "add --inference slide")

    def windows(self, image_size: Size) -> Windows | None:
        """The windows that the options ask for; None for the whole image. ConfigError if they leave gaps."""
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
        return Windows(window, stride)


@dataclass
class BackboneConfig:
    """backbone: the student, and which part of it is trained"""

    weights: Path | None = option(
        None,
        f"stage-1 run, weights file or 'pretrained' (default {DEFAULT_BACKBONE}; --adapt full: scratch)",
        metavar="RUN|FILE",
    )
    name: str | None = option(None, "timm name; needed if --backbone is a weights file or from scratch")
    args: dict[str, Any] = option({}, "arguments of the timm model", keys=TIMM_ARGUMENTS)
    mean: tuple[float, float, float] | None = option(
        None,
        "mean of pixels in 0..1, if a weights file was trained with another than timm's",
        metavar=_RGB,
        within=ranges.MEAN,
    )
    std: tuple[float, float, float] | None = option(
        None, "standard deviation of pixels in 0..1", metavar=_RGB, within=ranges.DEVIATION
    )
    adapt: str = option(
        "frozen",
        "train only the head (frozen), the backbone's last K blocks too (last4), or all (full, as every "
        "--method does)",
        metavar="frozen|lastK|full",
    )

    def __post_init__(self) -> None:
        if self.adapt not in ("frozen", "full") and not _LAST.fullmatch(self.adapt):
            raise ConfigError(f"adapt is '{self.adapt}'", "give frozen, full, or last4 for the last 4 blocks")

    def last_blocks(self) -> int:
        """The number of a frozen backbone's last blocks that are trained with the head."""
        last = _LAST.fullmatch(self.adapt)
        return int(last[1]) if last else 0

    def path(self) -> Path | None:
        """The weights' place; None for a training from scratch."""
        if self.weights is None and self.adapt != "full":
            return DEFAULT_BACKBONE
        return self.weights

    def student_name(self) -> str | None:
        """The student's timm name; None if the run folder holds it."""
        return self.name or (DEFAULT_STUDENT if self.path() is None else None)


@dataclass
class LabelledDataConfig:
    """data: labelled images to train on and to validate on"""

    train: list[str] = option(
        [], f"source-domain dataset, repeatable (default {DEFAULT_TRAIN})", metavar="ADAPTER:PATH"
    )
    train_weights: tuple[float, ...] | None = option(
        None,
        "proportions in which several --train are mixed (default: all images alike)",
        metavar="X",
        within=ranges.PROPORTION,
    )
    label_fraction: str = option("1", "share of each --train that is used, for example 1/16; subsets nest")
    sampling: str = option(
        "uniform",
        "every image once an epoch, or images of rare classes more often",
        choices=("uniform", "rare-class"),
    )
    sampling_temperature: float = option(
        0.01,
        "of rare-class sampling: the lower, the rarer",
        within=Range(gt=0, le=1e6, hint="for example 0.01"),
    )
    val: list[str] = option(
        [],
        f"in-domain validation, repeatable: the mean of their mIoU decides (default {DEFAULT_VAL})",
        metavar="ADAPTER:PATH",
    )
    check: bool = option(True, "read every training and validation sample once before training")

    def __post_init__(self) -> None:
        if bool(self.train) != bool(self.val):
            missing, flag = ("--val", "--train") if self.train else ("--train", "--val")
            raise ConfigError(
                f"{flag} is given without {missing}", "give both, or neither for the embedded data"
            )
        self.label_share()
        weights, sources = self.train_weights, len(self.train_sets())
        if weights is not None and len(weights) != sources:
            raise ConfigError(
                f"train_weights has {len(weights)} numbers for {sources} --train", "give one for each --train"
            )

    def label_share(self) -> Fraction:
        """``label_fraction`` as a number in (0, 1]; ConfigError."""
        try:
            share = Fraction(self.label_fraction)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share <= 1:
            raise ConfigError(
                f"label_fraction '{self.label_fraction}' is not above 0 and at most 1", "for example 1/16"
            )
        return share

    def train_sets(self) -> list[str]:
        return self.train or [DEFAULT_TRAIN]

    def val_sets(self) -> list[str]:
        return self.val or [DEFAULT_VAL]


@dataclass
class Stage2RunConfig(RunConfig):
    """run: its folder, length, checkpoints and logs"""

    out: Path = again(RunConfig, "out", Path("runs/stage2"))
    steps: int = again(RunConfig, "steps", 400)
    global_batch: int | None = again(
        RunConfig, "global_batch", None, "images an optimizer step, over all ranks (default: 16)"
    )


@dataclass
class Stage2Config:
    """Train a segmentation head on a frozen backbone."""

    backbone: BackboneConfig = inline(BackboneConfig, weights="backbone", name="student", args="student_args")
    data: LabelledDataConfig = inline(LabelledDataConfig)
    run: Stage2RunConfig = inline(Stage2RunConfig)
    head: str = option(next(iter(HEADS)), "segmentation head", choices=HEADS)
    head_args: dict[str, Any] = option({}, "arguments of the head, for example width=64, or size=small")
    image_size: str = option("96x128", "training size, and the size that inference works at", metavar="N|HxW")
    optim: Stage2OptimConfig = section(Stage2OptimConfig)
    augment: AugmentConfig = section(AugmentConfig)
    method: MethodConfig = section(MethodConfig)
    inference: InferenceConfig = section(InferenceConfig)
    val_every: int = option(
        100, "steps between validations; the best one is what the run exports", within=ranges.COUNT
    )

    def __post_init__(self) -> None:
        self.inference.windows(self.size())
        check_head(self.head, self.head_args)
        if self.method.name is not None:
            if self.backbone.last_blocks():
                raise ConfigError(
                    f"adapt is '{self.backbone.adapt}', but a method trains the whole encoder",
                    "leave --adapt or --method out",
                )
            self.backbone.adapt = "full"

    def size(self) -> tuple[int, int]:
        """Height and width of the training images."""
        return parse_size(self.image_size)

    def peak_lr(self) -> float:
        """``optim.lr``, else the head's default; at most 1e-3 if the backbone is trained too."""
        if self.optim.lr is not None:
            return self.optim.lr
        head = HEADS[self.head].lr
        return head if self.backbone.adapt == "frozen" else min(head, 1e-3)


@dataclass
class TeacherProbeConfig:
    """Know a teacher before it is cached: which layer, which conditioning, what a student can hope for."""

    teacher: DemoTeacherConfig = inline(
        DemoTeacherConfig,
        name="teacher",
        weights="teacher_weights",
        args="teacher_args",
        layer=None,
        patch_resize=None,
        dtype=None,
    )
    train: list[str] = option(
        [DEFAULT_TRAIN], "labelled source images to fit on, repeatable", metavar="ADAPTER:PATH"
    )
    val: list[str] = option(
        [DEFAULT_VAL], "labelled images of the source's own domain to score on", metavar="ADAPTER:PATH"
    )
    image_size: str = option("96x128", "image size in pixels, as the cache will have it", metavar="N|HxW")
    images: int = option(300, "most images of each that are used, evenly spread", within=ranges.COUNT)
    batch_size: int = option(8, "images that go through the teacher together", within=ranges.SIZE)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")
    out: Path = option(Path("runs/probe"), "folder for probe.json and probe.png")

    def __post_init__(self) -> None:
        for ref in (*self.train, *self.val):
            if any(part.startswith("unseen") for part in Path(ref.partition(":")[2].partition("@")[0]).parts):
                raise ConfigError(
                    f"{ref} is an unseen domain, and a layer that is chosen on it is no longer tested by it",
                    "give images of the source's own domain",
                )


@dataclass(kw_only=True)
class LookConfig:
    """What evaluate and predict have in common: the run, and how its model sees images."""

    run: Path = option(help="folder of a finished stage-2 run", positional=True)
    inference: InferenceConfig = section(InferenceConfig)
    tta_scales: tuple[float, ...] = option(
        (1.0,),
        "average predictions over these sizes of the image; 1 is the training size",
        metavar="X",
        within=Range(gt=0, le=16, hint="sizes of the image; 1 is the training size"),
    )
    tta_flip: bool = option(False, "average predictions over the image and its mirror image")
    batch_size: int = option(
        8, "images or windows of one size that go through the model together", within=ranges.SIZE
    )
    workers: int = option(2, "threads that read and resize", within=ranges.THREADS)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...")

    def __post_init__(self) -> None:
        if not self.tta_scales:
            raise ConfigError("'tta_scales' is empty", "give 1 for the training size alone")


@dataclass(kw_only=True)
class PredictConfig(LookConfig):
    """Predict the classes of any images with a stage-2 run."""

    images: str = option(
        help="a folder, a pattern with *, a list (.txt, .parquet), tars, a video, a URL, or ADAPTER:PATH",
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
    domains: dict[str, str] = {}
    for text in data:
        name, equals, ref = text.partition("=")
        if not (equals and name.strip() and ref.strip()):
            raise ConfigError(
                f"--data '{text}' is not NAME=ADAPTER:PATH", "for example dusk=camvid:camvid/unseen_dusk"
            )
        if name in domains:
            raise ConfigError(f"--data names the domain '{name}' twice", "give each domain a name of its own")
        domains[name] = ref
    return domains
