"""Speed of stage 1, as ratios measured in turns in one run on one machine.

    python benchmarks/stage1_speed.py PART [--images FOLDER] [--mobilenet FILE] [--steps N] [--out FILE]

PART is one of
- limit: steps/s from a cache, one loader thread, over steps/s with the same batches in memory;
- live: images/s from a cache over images/s with the teacher live, beside (teacher + student) / student;
- peers: images/s from a cache over the reference method's loop (live teacher, two full student passes,
  softmax(QK)V); ``lightly_distillation.py`` measures the other peer;
- masked: the shared masked pass over two full passes, and how far their losses are apart;
- qsd: seconds and peak memory of QSD against softmax(QK)V, forward and backward;
- ranks: images/s of two ranks over one, one thread each, the same batch a rank;
- students: two students in one pass over each alone, with a slow loader and with slow students.

One torch thread. Teachers and students are untrained, as speed does not depend on it. What is compared is
measured in turns; a figure is the least of ``--steps`` turns, since other work on a machine only adds time.
``--out`` adds the part to a JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_scale.cache.build import build
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.cache.live import LiveSource
from gkd_scale.cache.loader import CachedSource
from gkd_scale.cache.reader import open_caches
from gkd_scale.distill.config import published
from gkd_scale.distill.losses.mse import mse
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.engine import ds_config
from gkd_scale.engine.loop import Job, Training
from gkd_scale.engine.runtime import Runtime, free_port
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.masking import masked_positions, random_mask
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.students import load_student
from gkd_scale.prefetch import prefetch
from gkd_scale.types import Batch, BatchSource, Features, Teacher

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
STUDENT = "vit_tiny_patch16_224"
TEACHERS = {"mobilenetv2_100": 3.5, "vit_small_patch16_224": 22, "vit_base_patch16_224": 86}
"""Names, and millions of parameters."""
BATCH = 8


class Bench:
    """What the parts share: images, a scratch folder, a world of one."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.scratch = args, scratch
        self.steps: int = args.steps
        self.runtime = Runtime.start()
        self.plan = ds_config.resolve(
            "zero0.json",
            ROOT / "launchers",
            global_batch=BATCH,
            world=1,
            device=self.runtime.device,
            default=BATCH,
        )

    def teacher(self, name: str, size: int = 224) -> Teacher:
        """A teacher with random weights, or MobileNetV2 with the file of ``--mobilenet``."""
        torch.manual_seed(0)
        if name.startswith("mobilenetv2"):
            args = {"pad_type": "same"}
            return load_teacher(TeacherConfig(name, weights=self.args.mobilenet, args=args), (size, size))
        import timm
        from safetensors.torch import save_file

        path = self.scratch / f"{name}.safetensors"
        if not path.exists():
            save_file(timm.create_model(name, num_classes=0).state_dict(), path)
        return load_teacher(TeacherConfig(name, weights=path), (size, size))

    def images(self, count: int) -> Path:
        """A folder with links to ``count`` of the images."""
        folder = self.scratch / f"images-{count}"
        if not folder.exists():
            folder.mkdir()
            for path in sorted(self.args.images.glob("*.jpg"))[:count]:
                (folder / path.name).symlink_to(path.resolve())
        return folder

    def cache(self, teacher: Teacher, name: str, count: int = 32, size: int = 224) -> CachedSource:
        """Batches from a cache of ``count`` images, one loader thread."""
        out = self.scratch / f"cache-{name}-{count}-{size}"
        cfg = CacheTeacherConfig(images=self.images(count), image_size=size, out=out)
        build(cfg, teacher, quiet=True)  # type: ignore[arg-type]
        return CachedSource(open_caches([out]), global_batch=BATCH, micro_batch=BATCH, workers=1)

    def training(self, source: BatchSource, student: str = STUDENT, **args: Any) -> Training:
        """A student under DeepSpeed without ZeRO, as stage 1 trains it."""
        torch.manual_seed(0)
        net = load_student(student, source.image_size, source.grid, args=args)
        distiller = Distiller(net, TeacherSpace(source.teacher_dim, source.grid))
        out = self.scratch / "run"
        return Training(Job("bench", distiller, lambda _: 1e-4, out, ema=0.999), self.runtime, self.plan)

    def stepper(self, training: Training, batches: Iterator[Batch]) -> Callable[[], None]:
        """One whole optimizer step, its batch included."""
        count = iter(range(10**9))

        def step() -> None:
            number = next(count)
            training.begin(number)
            training.micro_step(next(batches), number, gradient_norm=True)
            training.end(number + 1)

        return step


def in_turns(steps: int, **works: Callable[[], object]) -> dict[str, float]:
    """Least seconds of each work in ``steps`` turns, after one unmeasured turn."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(steps + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def rates(seconds: dict[str, float], count: int) -> dict[str, float]:
    """How many of ``count`` a second, for each work."""
    return {name: count / value for name, value in seconds.items()}


# ------------------------------------------------------------------------------------------- parts


def limit(bench: Bench) -> dict[str, Any]:
    """In turns of two steps, so that the loader cannot work far ahead while the other side is measured."""
    name = "vit_base_patch16_224"
    source = bench.cache(bench.teacher(name), name)
    resident = list(source.batches(0, 2))
    training = bench.training(source)

    def train(batches: Iterator[Batch]) -> None:
        step = bench.stepper(training, batches)
        for _ in resident:
            step()

    seconds = in_turns(
        bench.steps, cache=lambda: train(source.batches(0, 2)), memory=lambda: train(iter(resident))
    )
    return {"steps/s": rates(seconds, 2), "ratio": seconds["memory"] / seconds["cache"]}


def live_source(bench: Bench, teacher: Teacher, count: int = 32) -> LiveSource:
    recipe = CacheTeacherConfig(images=bench.images(count), image_size=224, out=bench.scratch)
    return LiveSource(
        recipe.images, teacher, view=recipe.view, global_batch=BATCH, micro_batch=BATCH, workers=1
    )


def live(bench: Bench) -> dict[str, Any]:
    rows = {}
    for name, millions in TEACHERS.items():
        teacher = bench.teacher(name)
        source, run = bench.cache(teacher, name), live_source(bench, teacher)
        training = bench.training(source)
        pixels = next(source.batches(0, 1)).pixels
        seconds = in_turns(
            bench.steps,
            cached=bench.stepper(training, source.batches(0, 10**6)),
            live=bench.stepper(training, run.batches(0, 10**6)),
            teacher=lambda teacher=teacher, pixels=pixels: teacher(pixels),
        )
        speed_up = seconds["live"] / seconds["cached"]
        prediction = (seconds["teacher"] + seconds["cached"]) / seconds["cached"]
        rows[name] = {
            "parameters_m": millions,
            "images/s": rates(seconds, BATCH),
            "speed_up": speed_up,
            "predicted": prediction,
            "of_prediction": speed_up / prediction,
        }
    return rows


def naive(head: QsdHead, student: Tensor, teacher: Tensor) -> Tensor:
    """softmax(QK)V as it is written down."""
    attention = torch.softmax(head.proj_q(student) @ teacher.transpose(1, 2), -1)
    return attention @ head.proj_v(student)


def two_passes(distiller: Distiller, batch: Batch, head: Callable[..., Tensor]) -> Tensor:
    """The published loss: the second pass runs on all images, half of them masked."""
    student = distiller.student
    target = Features(*(tensor.float() for tensor in batch.teacher))
    mask = torch.zeros(len(batch.sids), student.mask_tokens, dtype=torch.bool)
    for row in masked_positions(batch.positions, 0.5):
        mask[row] = random_mask(
            batch.sids[row], batch.epochs[row], distiller.draws.seed, student.mask_tokens, 0.5
        )
    plain, masked = distiller.features(batch.pixels), distiller.features(batch.pixels, mask)
    target_cls = target.cls[:, None]
    soft_cls = head(distiller.head_cls, plain.cls[:, None], target_cls)
    soft = head(distiller.head_feature, plain.patches, target.patches)
    both = mse(torch.cat([soft_cls, soft], 1), torch.cat([target_cls, target.patches], 1))
    mask_loss = mse(head(distiller.head_mask, masked.patches, target.patches), target.patches)
    return both + mask_loss + mse(soft_cls, target_cls)


def published_distiller(source: CachedSource) -> Distiller:
    """A student with the losses of the paper."""
    loss, qsd = published()
    student = load_student(STUDENT, (224, 224), source.grid)
    return Distiller(student, TeacherSpace(source.teacher_dim, source.grid), loss=loss, qsd=qsd)


def peers(bench: Bench) -> dict[str, Any]:
    """The reference loop gets its pixels from a thread, as ours; its teacher runs in every step."""
    name = "vit_base_patch14_dinov2"
    teacher = bench.teacher(name)
    source, run = bench.cache(teacher, name), live_source(bench, teacher)
    training = bench.training(source)
    torch.manual_seed(0)
    distiller = published_distiller(source)
    optimizer = torch.optim.AdamW(distiller.parameters(), 1e-4)
    batches = run.batches(0, 10**6)

    def reference() -> None:
        loss = two_passes(distiller, next(batches), naive)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    ours = bench.stepper(training, source.batches(0, 10**6))
    seconds = in_turns(bench.steps, ours=ours, reference=reference)
    return {"images/s": rates(seconds, BATCH), "ratio": seconds["reference"] / seconds["ours"]}


def masked(bench: Bench) -> dict[str, Any]:
    teacher = bench.teacher("vit_small_patch16_224")
    source = bench.cache(teacher, "vit_small_patch16_224")
    distiller = published_distiller(source)
    batches = cycle(list(source.batches(0, 2, distiller.draws)))
    differences: list[float] = []

    def once() -> None:
        distiller.zero_grad()
        distiller(next(batches))["loss"].backward()

    def full() -> None:
        distiller.zero_grad()
        two_passes(distiller, next(batches), lambda head, *tokens: head(*tokens)).backward()

    for batch in source.batches(0, 2, distiller.draws):
        with torch.no_grad():
            one = float(distiller(batch)["loss"])
            two = float(two_passes(distiller, batch, lambda head, *tokens: head(*tokens)))
        differences.append(abs(one - two) / two)
    seconds = in_turns(bench.steps, shared=once, full=full)
    return {
        "seconds": seconds,
        "ratio": seconds["full"] / seconds["shared"],
        "relative_loss_difference": max(differences),
    }


QSD = r"""
import re, sys, time, torch
from pathlib import Path
from gkd_scale.distill.qsd import QsdHead
torch.set_num_threads(1)
form, tokens, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
head = QsdHead(384, 768)
student = torch.randn(2, tokens, 384, requires_grad=True)
teacher = torch.randn(2, tokens, 768)
def naive(s, t):
    return torch.softmax(head.proj_q(s) @ t.transpose(1, 2), -1) @ head.proj_v(s)
def step(s, t):
    (head if form == "sdpa" else naive)(s, t).square().mean().backward()
def kib(name):
    return int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])
step(student[:, :16], teacher[:, :16])
Path("/proc/self/clear_refs").write_text("5")  # the peak is the present
before = kib("VmRSS")
seconds = []
for _ in range(repeats):
    began = time.perf_counter()
    step(student, teacher)
    seconds.append(time.perf_counter() - began)
print(min(seconds), (kib("VmHWM") - before) / 1024)
"""


def qsd(bench: Bench) -> dict[str, Any]:
    """Each in a process of its own: peak memory is a process's. Widths 384 and 768, two images."""
    rows: dict[str, Any] = {}
    for tokens in (256, 1024, 4096):
        row: dict[str, Any] = {}
        for form in ("sdpa", "naive"):
            command = [sys.executable, "-c", QSD, form, str(tokens), str(bench.steps)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            row[form] = {"seconds": float(output[0]), "peak_mib": float(output[1])}
        row["memory_ratio"] = row["naive"]["peak_mib"] / row["sdpa"]["peak_mib"]
        row["speed_up"] = row["naive"]["seconds"] / row["sdpa"]["seconds"]
        rows[str(tokens)] = row
    return rows


def ranks(bench: Bench) -> dict[str, Any]:
    """The real launcher script under torchrun; the first steps are left out."""
    name = "vit_small_patch16_224"
    source = bench.cache(bench.teacher(name), name)
    assert source.num_samples
    cache = bench.scratch / f"cache-{name}-32-224"
    by_world: dict[str, float] = {}
    for world in (1, 2, 1, 2):
        out = bench.scratch / f"ranks-{world}-{len(by_world)}-{time.monotonic_ns()}"
        flags = ["--ds-config", "zero1.json", "--cache", cache, "--student", STUDENT, "--workers", 1]
        flags += ["--out", out, "--global-batch", BATCH * world, "--steps", bench.steps + 2, "--ema", 0]
        command = ["--nproc-per-node", world, "--master-port", free_port(), ROOT / "launchers/stage1.py"]
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *map(str, [*command, *flags])],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        best = max(row["images_per_s"] for row in rows[2:])
        by_world[str(world)] = max(best, by_world.get(str(world), 0.0))
    return {"images/s": by_world, "ratio": by_world["2"] / by_world["1"]}


class SlowSource:
    """Batches that take ``seconds`` an image to read, as from a busy disk or a network; one thread."""

    def __init__(self, source: CachedSource, seconds: float) -> None:
        self._source, self._seconds = source, seconds

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        def slowly(batch: Batch) -> Batch:
            time.sleep(self._seconds * len(batch.sids))
            return batch

        return prefetch(slowly, self._source.batches(start, stop), workers=1, depth=2)


def students(bench: Bench) -> dict[str, Any]:
    """Two small students; if the loader is the slow part, an image takes 50 ms to read."""
    small = {"embed_dim": 96, "depth": 2, "num_heads": 3}
    source = bench.cache(bench.teacher("mobilenetv2_100"), "mobilenetv2_100")
    one, two = (bench.training(source, **small) for _ in range(2))
    results: dict[str, Any] = {}
    for regime, seconds_an_image in (("loader", 0.05), ("students", 0.0)):
        slow = SlowSource(source, seconds_an_image)

        def train(trainings: list[Training], slow: SlowSource = slow) -> None:
            for number, batch in enumerate(slow.batches(0, 6)):
                for training in trainings:
                    training.begin(number)
                    training.micro_step(batch, number, gradient_norm=True)
                    training.end(number + 1)

        seconds = in_turns(
            bench.steps,
            first=lambda train=train: train([one]),
            second=lambda train=train: train([two]),
            both=lambda train=train: train([one, two]),
        )
        ratio = seconds["both"] / (seconds["first"] + seconds["second"])
        results[regime] = {"seconds": seconds, "ratio": ratio}
    return results


PARTS = {part.__name__: part for part in (limit, live, peers, masked, qsd, ranks, students)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--images", type=Path, default=SHARED / "proxy_imagenet/images")
    mobilenet = SHARED / "teacher/mobilenetv2_100_imagenet1k.safetensors"
    parser.add_argument("--mobilenet", type=Path, default=mobilenet)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(KeyboardInterrupt):
        bench = Bench(args, Path(scratch))
        began = time.monotonic()
        result = PARTS[args.part](bench)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        facts = {"seconds": round(time.monotonic() - began, 1), "peak_gib": round(peak, 2)}
        machine = {"cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}
        report = {args.part: {**result, "run": {**facts, **machine, "date": time.strftime("%Y-%m-%d")}}}
        print(json.dumps(report, indent=2))
        if args.out:
            before = json.loads(args.out.read_text()) if args.out.exists() else {}
            args.out.write_text(json.dumps({**before, **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
