"""Options of ``cache-teacher`` and ``verify``. Imports neither torch nor pyarrow: ``--help`` is fast."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gkd_scale import ranges
from gkd_scale.cache.location import is_stored
from gkd_scale.config import again, inline, option, section
from gkd_scale.errors import ConfigError, nearest
from gkd_scale.models.config import DemoTeacherConfig
from gkd_scale.ranges import Range

MAX_SIDE = 16384
"""Longest side of a view in pixels."""


GPUS = {
    # Peak dense TFLOP/s in fp32 (without TF32) and bf16, and GB of memory, from NVIDIA's data sheets.
    "v100": (15.7, 125.0, 32),
    "t4": (8.1, 65.0, 16),
    "a100": (19.5, 312.0, 80),
    "l40s": (91.6, 362.0, 48),
    "h100": (67.0, 989.0, 80),
    "h200": (67.0, 989.0, 141),
}
"""Rates that plan counts with. V100 and T4 have fp16 in the place of bf16."""


def parse_size(text: str | int | None) -> tuple[int, int]:
    """``"224"`` or ``"144x192"`` to (height, width) in pixels; ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,6})(?:\s*[xX×]\s*(\d{1,6}))?\s*", str(text))
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (0 < size[0] <= MAX_SIDE and 0 < size[1] <= MAX_SIDE):
        raise ConfigError(
            f"image size '{text}' is not a size in pixels from 1 to {MAX_SIDE}",
            "write N for a square or HxW, for example 224 or 144x192",
        )
    return size


@dataclass
class ViewConfig:
    """view: how an image becomes the pixels that teacher and student see"""

    crop: str = option(
        "random", "random: RandomResizedCrop; center: largest centred", choices=("random", "center")
    )
    scale: tuple[float, float] = option(
        (0.35, 1.0), "share of the image's area a crop keeps", metavar=("MIN", "MAX"), within=ranges.SOME
    )
    ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3),
        "aspect of a crop, relative to the target's",
        metavar=("MIN", "MAX"),
        within=ranges.SCALE,
    )
    flip: float = option(0.5, "probability of a horizontal flip", within=ranges.SHARE)
    color: float = option(
        0.3, "strength of brightness, contrast and saturation jitter; 0 is off", within=ranges.STRENGTH
    )
    randaugment: int = option(
        0,
        "operations of RandAugment a view, each applied with probability 1/2",
        within=Range(ge=0, le=15, hint="a few operations, for example 2"),
    )
    magnitude: float = option(
        9.0, "strength of RandAugment, 0 to 10", within=Range(ge=0, le=10, hint="from 0 to 10")
    )
    quality: int = option(
        92,
        "JPEG quality of the stored view (4:4:4)",
        within=Range(ge=1, le=100, hint="of JPEG, for example 92"),
    )

    def __post_init__(self) -> None:
        _require(self.crop in ("random", "center"), "view.crop", self.crop, "'random' or 'center'")
        _require(self.scale[0] <= self.scale[1], "view.scale", self.scale, "MIN <= MAX")
        _require(self.ratio[0] <= self.ratio[1], "view.ratio", self.ratio, "MIN <= MAX")


@dataclass
class CacheTeacherConfig:
    """Run a teacher over a folder of images and keep its tokens."""

    images: str | Path = option(
        help="images: folder, list (.txt, .parquet), tars (a-{00..12}.tar), URL, labelled ADAPTER:PATH; "
        "or cache:CACHE, the pixels, views and shards of another teacher's cache, which are not stored twice",
        metavar="PATH",
    )
    out: Path = option(help="folder or URL of the cache; the same command again goes on where it stopped")
    image_size: str | int | None = option(
        None, "size of a view in pixels; with --images cache:CACHE that of the cache", metavar="N|HxW"
    )
    teacher: DemoTeacherConfig = inline(
        DemoTeacherConfig,
        name="teacher",
        weights="teacher_weights",
        args="teacher_args",
        layer="teacher_layer",
        dtype="teacher_dtype",
    )
    views: int = option(
        1, "views of each image; epoch e trains on view e modulo K", metavar="K", within=ranges.SIZE
    )
    codec: str = option("fp16", "how tokens are stored: fp16, bf16, int8, fp8, pcaK or tcB", metavar="NAME")
    codec_fit: int = option(
        256, "images that a pcaK or tcB codec is fitted to, in a first pass", metavar="N", within=ranges.COUNT
    )
    samples_per_shard: int = option(512, "images a shard", within=ranges.SIZE)
    batch_size: int = option(32, "images a teacher batch", within=ranges.SIZE)
    workers: int | None = option(
        None,
        "threads that read and encode (default: CPU cores, at most 8)",
        metavar="N",
        within=ranges.THREADS,
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:I or several: cuda:0,1", metavar="DEVICE")
    ray: str | None = option(
        None, "Ray cluster to build on, one worker a device: auto or its address", metavar="auto|ADDRESS"
    )
    staging: Path = option(
        Path("~/.cache/gkd-scale/staging"), "folder where shards wait to be sent, if --out is a URL"
    )
    seed: int = option(0, "seed of the views", within=ranges.SEED)
    view: ViewConfig = section(ViewConfig)

    def __post_init__(self) -> None:
        if self.image_size is None and not is_stored(self.images):
            raise ConfigError("'image_size' is required (give --image-size)", "for example --image-size 224")
        if self.image_size is not None:
            parse_size(self.image_size)
        self.staging = self.staging.expanduser()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a view in pixels; ConfigError if a cache has to say it."""
        return parse_size(self.image_size)

    @property
    def devices(self) -> list[str]:
        """The devices to run a teacher on: ``cuda:0,1`` is ``cuda:0`` and ``cuda:1``."""
        kind, colon, numbers = self.device.partition(":")
        return [f"{kind}{colon}{number}" for number in numbers.split(",")] if colon else [kind]

    @property
    def threads(self) -> int:
        """Worker threads: ``workers``, by default the cores that this process may use, at most 8."""
        return default_workers() if self.workers is None else self.workers


@dataclass
class MirrorConfig:
    """mirror: local copies of caches behind a URL"""

    folder: Path = option(
        Path("~/.cache/gkd-scale"),
        "where each node mirrors caches behind a URL while they are used",
        metavar="DIR",
        volatile=True,
    )
    gb: float = option(
        50.0, "GB of shards that a node's mirror keeps", within=ranges.GIGABYTES, volatile=True
    )

    def __post_init__(self) -> None:
        self.folder = self.folder.expanduser()


@dataclass
class PlanConfig(CacheTeacherConfig):
    """Say what a cache will cost before its first byte: the flags of cache-teacher, and these."""

    students: list[str] = option(
        [], "student to train, repeatable (default: ViT-S and ViT-B)", metavar="NAME"
    )
    epochs: float = option(100.0, "epochs of training", within=ranges.EPOCHS)
    gpu: str = option("h100", f"GPU: {', '.join(GPUS)}", metavar="NAME")
    gpus: int = option(8, "GPUs that train, on one node; one of them runs the teacher", within=ranges.SIZE)
    disk_gbs: float = option(1.0, "GB/s that the disk reads, for each training GPU", within=ranges.GIGABYTES)
    measure: int = option(
        0, "time so many teacher batches here, instead of counting FLOPs", metavar="K", within=ranges.NUMBER
    )
    probe: int = option(
        16, "images that are encoded to learn the size of a view", metavar="N", within=ranges.COUNT
    )
    json: bool = option(False, "print JSON and nothing else")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpu not in GPUS:
            raise ConfigError(
                f"there is no rate for the GPU '{self.gpu}'",
                nearest(self.gpu, GPUS) or f"known: {', '.join(GPUS)}",
            )


@dataclass
class VerifyConfig:
    """Check every byte of a cache against its checksums."""

    cache: Path = option(help="folder that cache-teacher wrote", positional=True)
    rerun_teacher: int = option(
        0, "samples whose tokens are computed again and compared", metavar="K", within=ranges.NUMBER
    )
    tolerance: float = option(
        0.01,
        "largest relative L2 difference of a sample computed again",
        within=Range(gt=0, le=1, hint="a relative difference, for example 0.01"),
    )
    teacher_weights: Path | None = option(None, "the teacher's local weights", metavar="FILE")
    device: str = option("auto", "auto, cpu, cuda or cuda:I", metavar="DEVICE")
    ledger: Path | None = option(
        None, "RUN/ledger: check that it used each sample once an epoch", metavar="FOLDER"
    )


@dataclass
class RepairConfig:
    """Rebuild what is damaged in a cache, and nothing else."""

    cache: Path = option(help="folder that cache-teacher wrote", positional=True)
    images: str | Path = option(help="the images it was made of, or cache:CACHE", metavar="PATH")
    teacher_weights: Path | None = option(None, "the teacher's local weights", metavar="FILE")
    codec_fit: int = again(
        CacheTeacherConfig,
        "codec_fit",
        256,
        "as the cache was made with; only used if codec.safetensors is lost",
    )
    batch_size: int = again(CacheTeacherConfig, "batch_size", 32)
    workers: int | None = again(CacheTeacherConfig, "workers", None)
    device: str = again(CacheTeacherConfig, "device", "auto", "auto, cpu, cuda or cuda:I")


@dataclass
class PushConfig:
    """Put a finished cache on object storage."""

    cache: Path = option(help="folder that cache-teacher wrote", positional=True)
    to: str = option(help="where to: s3://bucket/prefix, gs://..., any fsspec URL", metavar="URL")


@dataclass
class StatsConfig:
    """Mean, covariance and norm of a cache's tokens."""

    cache: Path = option(help="folder that cache-teacher wrote", positional=True)
    out: Path | None = option(None, "file to write (default: CACHE/stats.safetensors)", metavar="FILE")


@dataclass
class InspectConfig:
    """Say and show what is in a cache."""

    cache: Path = option(help="folder that cache-teacher wrote", positional=True)
    sheet: Path | None = option(None, "PNG to write: views beside maps of their tokens", metavar="FILE")
    samples: int = option(12, "views on the sheet", within=ranges.SIZE)
    view: int = option(0, "which view of each image", metavar="V", within=ranges.NUMBER)


def default_workers() -> int:
    """The CPU cores this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def _require(holds: bool, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"'{key}' is {value}, not {rule}", f"change --{key.replace('_', '-')}")
