"""What one CUDA machine says about the paths that no test reaches: one Markdown table in under ten minutes.

    python benchmarks/gpu.py [--only PART ...] [--out gpu.md] [--tiny]

It needs no network and no data: images are drawn, models have random weights, as speed does not depend on
them. Parts that fail say so in their row, and the exit status is 1. ``--tiny`` runs every part that needs no
CUDA with tiny models on the CPU: it shows that the script works, and its numbers mean nothing.

A stock PyTorch image lacks DeepSpeed, timm and our smaller dependencies. On a machine with a network and the
same Python::

    pip download -d wheels -c constraints.txt . deepspeed timm
    pip wheel -w wheels --no-deps . deepspeed

and on the GPU machine ``pip install --no-index --find-links wheels gkd-scale``. Keep the image's own torch,
which fits its driver.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.live import LiveSource
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import open_caches
from gkd_scale.cache.teacher import run_teacher
from gkd_scale.distill.config import published
from gkd_scale.distill.losses.mse import mse
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.engine import ds_config
from gkd_scale.engine.feed import feed, map_tensors
from gkd_scale.engine.loop import Job, Training
from gkd_scale.engine.runtime import Runtime
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.students import load_student
from gkd_scale.scenes.proxy import render_proxy
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.types import Batch, Features, Teacher

LAUNCHERS = Path(__file__).parents[1] / "launchers"
BF16 = torch.bfloat16
Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Size:
    """How much is measured: models, a batch, images, turns."""

    students: tuple[str, ...] = ("vit_small_patch16_224", "vit_base_patch16_224")
    teacher: str = "vit_large_patch14_dinov2.lvd142m"
    pixels: int = 224
    batch: int = 64
    images: int = 512
    turns: int = 20
    tokens: tuple[int, ...] = (256, 1024, 4096)
    qsd_batch: int = 8
    codecs: tuple[str, ...] = ("fp16", "int8")


TINY = Size(("vit_tiny_patch16_224",), "vit_tiny_patch16_224", 32, 4, 8, 2, (16, 64), 2)


class Kit:
    """What the parts share: the device, drawn images, teachers with random weights, caches and trainings."""

    def __init__(self, size: Size, scratch: Path) -> None:
        self.size, self.scratch = size, scratch
        self.runtime = Runtime.start()
        self.device = self.runtime.device
        self.cuda = self.device.type == "cuda"
        self.images = scratch / "images"
        self.images.mkdir()
        for index in range(size.images):
            Image.fromarray(render_proxy(index, (256, 320))).save(self.images / f"{index:05}.jpg", quality=92)

    def teacher(self, name: str) -> Teacher:
        """The teacher in bf16 on the device, with random weights."""
        import timm
        from safetensors.torch import save_file

        path = self.scratch / f"{name}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            save_file(timm.create_model(name, num_classes=0).state_dict(), path)
        config = TeacherConfig(name, weights=path, dtype="bfloat16")
        return load_teacher(config, (self.size.pixels, self.size.pixels), str(self.device))

    def cache(self, codec: str = "fp16") -> Path:
        """A cache of all images."""
        out = self.scratch / f"cache-{codec}"
        if not (out / "manifest.parquet").exists():
            size = str(self.size.pixels)
            cfg = CacheTeacherConfig(images=self.images, image_size=size, out=out, codec=codec)
            build(cfg, self.teacher(self.size.teacher), quiet=True)
        return out

    def source(self, codec: str = "fp16", workers: int = 8) -> CachedSource:
        batch = {"global_batch": self.size.batch, "micro_batch": self.size.batch, "workers": workers}
        return CachedSource(open_caches([self.cache(codec)]), **batch, pin=self.cuda, encoded=self.cuda)

    def training(
        self, source: Any, student: str, config: str = "zero1_bf16.json", **options: Any
    ) -> tuple[Training, Distiller]:
        """A student under DeepSpeed, as stage 1 trains it; ``options``: the Distiller's, and ``compile``."""
        torch.manual_seed(0)
        net = load_student(student, source.image_size, source.grid)
        jit = options.pop("compile", False)
        distiller = Distiller(net, TeacherSpace(source.teacher_dim, source.grid), **options)
        if jit:  # a CPU would compile kernels for minutes
            distiller.compile_losses(backend="inductor" if self.cuda else "eager")
        plan = ds_config.resolve(
            config if self.cuda else "zero0.json",
            LAUNCHERS,
            global_batch=self.size.batch,
            world=1,
            device=self.device,
            default=self.size.batch,
        )
        job = Job("gpu", distiller, lambda _: 1e-4, self.scratch / "run", ema=0.999)
        return Training(job, self.runtime, plan), distiller

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], turns: int | None = None) -> float:
        """Median seconds of a call, after two that are not counted."""
        took = []
        for turn in range(2 + (turns or self.size.turns)):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if turn >= 2:
                took.append(time.perf_counter() - began)
        return statistics.median(took)

    def peak(self, work: Callable[[], object]) -> str:
        """The MB of device memory that a call takes at most beyond what is allocated before it."""
        if not self.cuda:
            return "memory: no CUDA"
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        self.wait()
        return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.0f} MB"

    def rate(self, training: Training, batches: Iterator[Batch], steps: int) -> float:
        """Steps a second of a whole loop over ``batches``: one wait at the end, as a run has it."""
        numbers = itertools.count()

        def train(count: int) -> None:
            for batch in itertools.islice(batches, count):
                number = next(numbers)
                training.begin(number)
                training.micro_step(batch, number, gradient_norm=False)
                training.end(number + 1)

        train(3)
        self.wait()
        began = time.perf_counter()
        train(steps)
        self.wait()
        return steps / (time.perf_counter() - began)


# ------------------------------------------------------------------------------------------- parts


def naive(head: QsdHead, student: Tensor, teacher: Tensor) -> Tensor:
    """softmax(QK)V as it is written down."""
    attention = torch.softmax(head.proj_q(student) @ teacher.transpose(1, 2), -1)
    return attention @ head.proj_v(student)


def qsd(kit: Kit) -> Rows:
    """Forward and backward of one QSD head in bf16, student 384 wide, teacher 1024."""
    dtype = BF16 if kit.cuda else torch.float32
    head = QsdHead(384, 1024).to(kit.device, dtype)
    for tokens in kit.size.tokens:
        shape = (kit.size.qsd_batch, tokens)
        student = torch.randn(*shape, 384, device=kit.device, dtype=dtype, requires_grad=True)
        teacher = torch.randn(*shape, 1024, device=kit.device, dtype=dtype)

        def step(form: Callable[..., Tensor], one: Tensor = student, other: Tensor = teacher) -> None:
            form(head, one, other).float().square().mean().backward()

        forms = [("naive", naive, contextlib.nullcontext())]
        forms += [("SDPA, chosen by torch", QsdHead.__call__, contextlib.nullcontext())]
        for backend in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION):
            if kit.cuda:
                forms.append((f"SDPA, {backend.name.lower()}", QsdHead.__call__, sdpa_kernel(backend)))
        for name, form, context in forms:
            yield f"N = {tokens}, {name}", _cost(kit, partial(step, form), context)


def _cost(kit: Kit, work: Callable[[], None], context: Any) -> str:
    """Milliseconds and memory of ``work``, or why a backend does not take its shapes."""
    try:
        with context, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f"{1000 * kit.seconds(work):.2f} ms, {kit.peak(work)}"
    except RuntimeError as error:
        return f"refused: {str(error).splitlines()[0]}"


def masked(kit: Kit) -> Rows:
    """The masked pass on the masked images alone against a second pass on all of them."""
    source = kit.source()
    loss, form = published()
    _, distiller = kit.training(source, kit.size.students[0], loss=loss, qsd=form)
    batch = on_device(next(source.batches(0, 1, distiller.draws)), kit)

    def all_twice() -> None:
        mask = next(iter(batch.drawn.masks.values()))  # type: ignore[union-attr]
        masks = mask[:1].expand(len(batch.sids), -1).to(kit.device)
        plain, other = distiller.features(batch.pixels), distiller.features(batch.pixels, masks)
        target = Features(*(tensor.float() for tensor in batch.teacher))
        distiller.heads[0].losses(plain, other.patches, target)["loss"].backward()

    seconds = kit.seconds(lambda: distiller(batch)["loss"].backward())
    full = kit.seconds(all_twice)
    yield "shared masked pass over two full passes", f"{full / seconds:.2f}x ({1000 * seconds:.1f} ms)"


def on_device(batch: Any, kit: Kit) -> Any:
    result = map_tensors(batch, lambda tensor: tensor.to(kit.device))
    return result.decode() if hasattr(result, "decode") else result


def stage1(kit: Kit) -> Rows:
    """Steps a second from a cache over those of batches on the device; a live teacher; waits; memory."""
    steps = kit.size.turns
    for student in kit.size.students:
        for codec in kit.size.codecs:
            source = kit.source(codec)
            training, distiller = kit.training(source, student)
            batches = [on_device(batch, kit) for batch in source.batches(0, 4, distiller.draws)]
            resident = kit.rate(training, itertools.cycle(batches), steps)
            stream = feed(source.batches(0, 10**6, distiller.draws), kit.device)
            rate = kit.rate(training, stream, steps)
            images = kit.size.batch * rate
            ratio = f"{rate / resident:.3f} of the batches on the device"
            yield f"{student} from a {codec} cache", f"{rate:.2f} steps/s, {images:.0f} images/s, {ratio}"
            if codec == "fp16":
                memory = kit.peak(lambda t=training, h=batches: kit.rate(t, iter(h), 1))
                yield f"{student}: peak of a step", f"{memory} beside the states"
                yield f"{student}: waits for the device", waits(kit, training, batches[0])
                live = kit.rate(training, feed(live_batches(kit, distiller), kit.device), max(2, steps // 4))
                yield f"{student}: cached over a live teacher", f"{rate / live:.2f}x ({kit.size.teacher})"
                reference = reference_rate(kit, distiller, max(2, steps // 4))
                yield f"{student}: over the reference's loop", f"{rate / reference:.2f}x"


def live_batches(kit: Kit, distiller: Distiller) -> Iterator[Batch]:
    recipe = CacheTeacherConfig(images=kit.images, image_size=str(kit.size.pixels), out=kit.scratch)
    batch = {"global_batch": kit.size.batch, "micro_batch": kit.size.batch, "workers": 8}
    source = LiveSource(kit.images, kit.teacher(kit.size.teacher), view=recipe.view, **batch)
    return source.batches(0, 10**6, distiller.draws)


def reference_rate(kit: Kit, distiller: Distiller, steps: int) -> float:
    """The reference's loop: a live teacher, two full student passes, softmax(QK)V, AdamW, all in bf16."""
    optimizer = torch.optim.AdamW(distiller.parameters(), 1e-4)
    batches = live_batches(kit, distiller)
    heads = [QsdHead(distiller.student.dim, distiller.head_feature.proj_v[1].out_features) for _ in range(2)]
    for head in heads:
        head.to(kit.device)

    def step() -> None:
        batch = on_device(next(batches), kit)
        target = batch.teacher.patches.float()
        with torch.autocast(kit.device.type, BF16):
            passes = [distiller.features(batch.pixels).patches for _ in heads]
            soft = [naive(head, tokens, target) for head, tokens in zip(heads, passes, strict=True)]
        loss = mse(soft[0].float(), target) + mse(soft[1].float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return 1 / kit.seconds(step, steps)


def waits(kit: Kit, training: Training, batch: Batch) -> str:
    """How often one step waits for the device, as CUDA's sync debug mode counts."""
    if not kit.cuda:
        return "not measured: no CUDA"
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.begin(0)
            training.micro_step(batch, 0, gradient_norm=False)
            training.end(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = {
        f"{Path(item.filename).name}:{item.lineno}" for item in records if "synchroniz" in str(item.message)
    }
    return f"{len(places)} a step {' '.join(sorted(places))}"


def variants(kit: Kit) -> Rows:
    """ZeRO 1 to 3 with one rank, and ``--compile``."""
    student, source = kit.size.students[0], kit.source()
    for config, options in (
        ("zero1_bf16.json", {}),
        ("zero2_bf16.json", {}),
        ("zero3_bf16.json", {}),
        ("zero1_bf16.json", {"compile": True}),
    ):
        training, distiller = kit.training(source, student, config, **options)
        batches = [on_device(batch, kit) for batch in source.batches(0, 2, distiller.draws)]
        rate = kit.rate(training, itertools.cycle(batches), kit.size.turns)
        yield f"{student}, {config}{', --compile' if options else ''}", f"{rate:.2f} steps/s"


def caching(kit: Kit) -> Rows:
    """``cache-teacher`` over a bare loop of the teacher on the same pixels, decoded before."""
    teacher = kit.teacher(kit.size.teacher)
    pixels = [
        batch.pixels.numpy()
        for batch in kit.source(workers=2).batches(0, max(1, kit.size.images // kit.size.batch))
    ]
    bare = kit.seconds(lambda: [run_teacher(teacher, array) for array in pixels], 2)
    images = sum(map(len, pixels))
    took = []
    for turn in range(2):
        out = kit.scratch / f"again-{turn}"
        cfg = CacheTeacherConfig(
            images=kit.images, image_size=str(kit.size.pixels), out=out, batch_size=kit.size.batch
        )
        began = time.perf_counter()
        build(cfg, teacher, quiet=True)
        took.append(time.perf_counter() - began)
    rates = images / bare, kit.size.images / min(took)
    yield (
        f"cache-teacher, {kit.size.teacher}",
        f"{rates[1]:.0f} images/s, {rates[1] / rates[0]:.3f} of the bare loop",
    )


def stage2(kit: Kit) -> Rows:
    """Forward and backward of the heads on a student's maps in bf16."""
    from gkd_scale.models.backbone import load_backbone

    backbone = load_backbone(None, kit.size.students[0], {}).to(kit.device)
    pixels = torch.randint(
        0, 256, (8, 3, kit.size.pixels, kit.size.pixels), dtype=torch.uint8, device=kit.device
    )
    labels = torch.randint(0, 19, (8, kit.size.pixels, kit.size.pixels), device=kit.device)
    for name, args in (("linear", {}), ("fpn", {}), ("mask2former", {"size": "small"})):
        head = build_head(name, backbone.channels, 19, args).to(kit.device)

        def step(head: Any = head) -> None:
            with torch.autocast(kit.device.type, BF16), torch.no_grad():
                maps = backbone(pixels)
            with torch.autocast(kit.device.type, BF16):
                losses = head.losses([level.float() for level in maps], labels)
            losses["loss"].backward()

        yield (
            f"stage 2, {name} head, 8 images",
            f"{1 / kit.seconds(step):.2f} steps/s, {kit.peak(step)}",
        )


def parity(kit: Kit) -> Rows:
    """The losses of one batch on the device, in float32 and bf16, against the CPU's."""
    source = kit.source()
    torch.manual_seed(0)
    student = load_student(kit.size.students[0], source.image_size, source.grid)
    loss_config, form = published()
    space = TeacherSpace(source.teacher_dim, source.grid)
    distiller = Distiller(student, space, loss=loss_config, qsd=form)
    batch = on_device(next(source.batches(0, 1)), kit)
    few = Batch(batch.pixels[:4], Features(*(item[:4] for item in batch.teacher)), (), (), ())

    def loss(device: torch.device) -> float:
        distiller.to(device)
        inputs = map_tensors(few, lambda tensor: tensor.to(device))
        target = Features(*(item.float() for item in inputs.teacher))
        return float(distiller.heads[0].losses(distiller.features(inputs.pixels), None, target)["loss"])

    with torch.no_grad():
        expected = loss(torch.device("cpu"))
        for name, limit in (("float32", 1e-3), ("bf16", 2e-2)):
            with torch.autocast(kit.device.type, BF16, enabled=name == "bf16"):
                error = abs(loss(kit.device) - expected) / expected
            yield f"loss in {name} against the CPU", f"{error:.1e} ({'ok' if error < limit else 'TOO FAR'})"


PARTS = {part.__name__: part for part in (qsd, masked, stage1, variants, caching, stage2, parity)}


def machine(kit: Kit) -> Rows:
    import deepspeed
    import timm

    name = "CPU"
    if kit.cuda:
        facts = torch.cuda.get_device_properties(kit.device)
        name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    yield "machine", f"{name}, {os.cpu_count()} cores"
    yield "versions", f"torch {torch.__version__}, DeepSpeed {deepspeed.__version__}, timm {timm.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeatable")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"))
    parser.add_argument("--tiny", action="store_true", help="tiny models on whatever device there is")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.tiny:
        parser.exit(2, "no CUDA device here: --tiny tries the script on the CPU\n")
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        kit = Kit(TINY if args.tiny else Size(), Path(scratch))
        lines = ["| | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine(kit))]
        for part in args.only or PARTS:
            began = time.perf_counter()
            try:
                for name, value in PARTS[part](kit):
                    lines.append(f"| {name} | {value} |")
                    print(lines[-1], flush=True)
            except Exception as error:  # the other parts are worth having
                failures += 1
                traceback.print_exc()
                lines.append(f"| {part} | FAILED: {type(error).__name__}: {str(error).splitlines()[0]} |")
            print(f"{part}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
            args.out.write_text("\n".join(lines) + "\n")
        kit.runtime.stop()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
