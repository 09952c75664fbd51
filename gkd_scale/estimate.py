"""``plan``: what a cache will cost, before its first byte.

Bytes are computed: a few images become views, and the sizes of their members in the tar are added up.
Teacher time is measured here on K batches (``--measure``), or FLOPs are counted on a model without memory
and divided by what a GPU reaches: its data sheet's peak times ``UTILISATION``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from gkd_scale import console
from gkd_scale.cache.build import plan_of
from gkd_scale.cache.codecs.registry import CODECS, parse, token_bytes
from gkd_scale.cache.config import GPUS, CacheTeacherConfig, PlanConfig
from gkd_scale.cache.location import is_url
from gkd_scale.cache.plan import ImagePlan
from gkd_scale.cache.shard import BLOCK, next_header, npy_bytes
from gkd_scale.cache.source import Source
from gkd_scale.cache.spec import FORMAT
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.cache.views import view_of
from gkd_scale.engine.zero_memory import zero_memory
from gkd_scale.errors import DataError
from gkd_scale.models.cost import Cost, cost
from gkd_scale.models.registry import teacher_cost
from gkd_scale.types import Teacher, UInt8Array

UTILISATION = 0.4
"""Share of the peak that dense transformers reach in practice."""

STUDENT_PASSES = 3.0
"""Cost of a training step in forward passes: forward and backward. A masked pass would add half of it."""

STUDENTS = ("vit_small_patch16_224", "vit_base_patch16_224")


@dataclass(frozen=True)
class CodecEstimate:
    """Bytes of a sample's patch members, of a view of all images, and of the cache."""

    codec: str
    sample: int
    view: int
    total: int
    fits: bool


@dataclass(frozen=True)
class StudentEstimate:
    """What training ``student`` asks of each GPU.

    ``images_per_s`` a GPU; ``gb_per_s`` to feed it at this codec; ``pays_after``: epochs until the cache
    costs less GPU time than a live teacher (None: never); ``zero``: GB a GPU of model states by ZeRO stage.
    """

    student: str
    parameters: int
    images_per_s: float
    gb_per_s: float
    pays_after: float | None
    zero: dict[int, float]


@dataclass(frozen=True)
class Estimate:
    """The whole estimate. Times are for one GPU of the kind ``gpu``."""

    images: int
    views: int
    grid: tuple[int, int]
    dim: int
    teacher: str
    teacher_gflops: float
    teacher_hours: float
    measured: bool
    gpu: str
    codec: str
    disk_free: int | None
    """None if the cache goes to a URL."""
    codecs: list[CodecEstimate]
    students: list[StudentEstimate]


def estimate(cfg: PlanConfig, load: Callable[[], Teacher], source: Source | None = None) -> Estimate:
    """The plan of ``cfg``; ``load`` gives the teacher, and is called only to measure it.

    ``source`` is what ``cfg.images`` names if that is a labelled dataset.
    """
    parse(cfg.codec)  # an unknown codec is an error before anything is read
    plan = plan_of(cfg, source, FORMAT)
    work = teacher_cost(cfg.teacher, cfg.size)
    pixels, rest = probe(cfg, plan)
    free = None if is_url(cfg.out) else shutil.disk_usage(_closest(cfg.out)).free
    codecs = [
        _codec(cfg, plan, work, rest, name, free)
        for name in dict.fromkeys([*(codec.suggestion(work.dim) for codec in CODECS), cfg.codec])
    ]
    float32, half, _ = GPUS[cfg.gpu]
    peak = float32 if cfg.teacher.dtype == "float32" else half
    seconds = _measure(load(), pixels, cfg) if cfg.measure else work.flops / (UTILISATION * peak * 1e12)
    target = next(candidate for candidate in codecs if candidate.codec == cfg.codec)
    return Estimate(
        images=len(plan),
        views=cfg.views,
        grid=work.grid,
        dim=work.dim,
        teacher=str(cfg.teacher.name),
        teacher_gflops=work.flops / 1e9,
        teacher_hours=seconds * len(plan) * cfg.views / 3600,
        measured=bool(cfg.measure),
        gpu=cfg.gpu,
        codec=cfg.codec,
        disk_free=free,
        codecs=codecs,
        students=[_student(cfg, name, seconds, target.view / len(plan)) for name in cfg.students or STUDENTS],
    )


def probe(
    cfg: CacheTeacherConfig, plan: ImagePlan, images: int | None = None
) -> tuple[list[UInt8Array], float]:
    """Pixels of a few views, and the mean bytes that the files beside the tokens take in a tar.

    DataError if none of the images can be read.
    """
    count = images if images is not None else getattr(cfg, "probe", 16)
    views = [view_of(cfg, plan, entry, 0) for entry in plan.spread(count)]
    readable = [item for item in views if not isinstance(item, str)]
    if not readable:
        raise DataError(f"none of {len(views)} images of {cfg.images} could be read", "check --images")
    sizes = [sum(_in_tar(len(data)) for data in item.members().values()) for item in readable]
    return [item.pixels for item in readable], float(np.mean(sizes))


def _in_tar(size: int) -> int:
    """Bytes of a member with its header and padding."""
    return next_header(BLOCK + size)


def _codec(
    cfg: PlanConfig, plan: ImagePlan, work: Cost, rest: float, name: str, free: int | None
) -> CodecEstimate:
    tokens, sizes = work.grid[0] * work.grid[1], token_bytes(name, work.dim).values()
    members = [len(npy_bytes(np.empty((tokens, size), np.uint8))) for size in sizes]
    cls = _in_tar(len(npy_bytes(np.empty(work.dim, np.float16))))
    view = round(len(plan) * (sum(map(_in_tar, members)) + cls + rest) + plan.shards * 6144)
    total = cfg.views * (view + plan.shards * 4096 + len(plan) * 128)
    return CodecEstimate(name, sum(members), view, total, free is None or total < free)


def _student(cfg: PlanConfig, name: str, teacher_seconds: float, sample_bytes: float) -> StudentEstimate:
    work = cost(name, cfg.size)
    step = STUDENT_PASSES * work.flops / (UTILISATION * GPUS[cfg.gpu][1] * 1e12)
    read_time = sample_bytes / (cfg.disk_gbs * 1e9)
    gain = teacher_seconds + step - max(step, read_time)
    return StudentEstimate(
        student=name,
        parameters=work.parameters,
        images_per_s=1 / step,
        gb_per_s=sample_bytes / step / 1e9,
        pays_after=cfg.views * teacher_seconds / gain if gain > 0 else None,
        zero={
            stage: size / 1e9
            for stage, size in zero_memory(work.parameters, work.largest_layer, cfg.gpus).items()
        },
    )


def _measure(teacher: Teacher, pixels: list[UInt8Array], cfg: PlanConfig) -> float:
    """Seconds of an image, over ``cfg.measure`` batches after one to warm up."""
    batch = np.stack([pixels[i % len(pixels)] for i in range(cfg.batch_size)])
    run_teacher(teacher, batch)
    start = time.perf_counter()
    for _ in range(cfg.measure):
        run_teacher(teacher, batch)
    return (time.perf_counter() - start) / (cfg.measure * cfg.batch_size)


def _closest(path: Path) -> Path:
    """The nearest folder above ``path`` that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


# --------------------------------------------------------------------------------------- tables


def show(result: Estimate, cfg: PlanConfig) -> None:
    """The plan as tables on the terminal."""
    peak = f"{UTILISATION:.0%} of a {result.gpu}'s {cfg.teacher.dtype} peak"
    how = "measured here" if result.measured else f"counted, {peak}"
    rows, columns = result.grid
    console.out.print(
        f"[bold]plan[/] {result.images} images x {result.views} views; teacher {result.teacher}: "
        f"{rows}x{columns} tokens of {result.dim}, {result.teacher_gflops:.1f} GFLOP an image, "
        f"{result.teacher_hours:.2f} hours ({how})"
    )
    console.out.print(_codec_table(result))
    if result.disk_free is not None:
        console.out.print(f"free at {_closest(cfg.out)}: {console.size(result.disk_free)}", markup=False)
    console.out.print(_student_table(result, cfg))


def _codec_table(result: Estimate) -> Table:
    table = Table(title="bytes", title_justify="left")
    for name in ("codec", "tokens a sample", "a view", f"{result.views} views", "fits"):
        table.add_column(name, justify="left" if name in ("codec", "fits") else "right")
    for codec in result.codecs:
        name = f"[bold]{codec.codec}[/]" if codec.codec == result.codec else codec.codec
        sizes = (console.size(codec.sample), console.size(codec.view), console.size(codec.total))
        table.add_row(name, *sizes, "yes" if codec.fits else "[red]no[/]")
    return table


def _student_table(result: Estimate, cfg: PlanConfig) -> Table:
    table = Table(
        title=f"training, {cfg.gpus} x {result.gpu}, codec {result.codec}, {cfg.epochs:g} epochs",
        title_justify="left",
    )
    names = ("student", "M", "images/s a GPU", "GB/s a GPU", "hours", "cache pays after")
    for name in (*names, *(f"ZeRO-{stage} GB" for stage in range(4))):
        table.add_column(name, justify="left" if name == "student" else "right")
    for student in result.students:
        hours = result.images * cfg.epochs / (student.images_per_s * cfg.gpus) / 3600
        pays = "never" if student.pays_after is None else f"{student.pays_after:.1f} epochs"
        numbers = (f"{student.images_per_s:.0f}", f"{student.gb_per_s:.2f}", f"{hours:.1f}", pays)
        memory = (f"{size:.2f}" for size in student.zero.values())
        table.add_row(student.student, f"{student.parameters / 1e6:.1f}", *numbers, *memory)
    return table
