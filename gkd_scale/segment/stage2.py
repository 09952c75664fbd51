"""Stage 2: learn the task on the source domain, without changing the backbone of stage 1.

The backbone is frozen: eval mode, no gradient, and compared bit for bit with the loaded weights at
every validation and at the end. Only the head gets a gradient. (For comparison, ``--adapt last4`` also
trains the backbone's last 4 blocks and compares the others, and ``--adapt full`` trains all of it; so does
``--method``, with a single-stage distillation beside the task: :mod:`gkd_scale.segment.methods`.) The best
step is chosen on in-domain validation alone.

Validation runs on a copy of the segmenter, so it does not depend on ZeRO-3's shards, train modes or half
precision: every ``val_every`` steps the trained tensors are gathered into the copy, each rank
scores its share of the images, and the confusion matrices are added, for each ``--val`` by itself. A
step whose mean over them is better is written to ``best/STEP``; ``best.json`` names it, and is
replaced in one move. At the end the best step becomes the run's export (see
:mod:`gkd_scale.segment.export`).
"""

from __future__ import annotations

import copy
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd_scale import __version__, console, files
from gkd_scale import config as configs
from gkd_scale.commands import shell
from gkd_scale.engine import dry_run, loop, schedule
from gkd_scale.engine import run as runs
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.zero import full_state
from gkd_scale.errors import ConfigError, RunError
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.backbone import Backbone, load_backbone
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.registry import load_teacher
from gkd_scale.models.tensor_files import below
from gkd_scale.models.weights import fingerprint
from gkd_scale.randomness import seed_of
from gkd_scale.scenes import UNSEEN
from gkd_scale.segment import export, probe
from gkd_scale.segment.augment import TrainStream
from gkd_scale.segment.config import DEFAULT_VAL, Stage2Config
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.datasets.registry import Datasets
from gkd_scale.segment.evaluate import confusion_of_ranks
from gkd_scale.segment.heads.registry import build_head
from gkd_scale.segment.inference import Inference, require_bounded_sample
from gkd_scale.segment.methods.base import MethodTeacher
from gkd_scale.segment.methods.registry import build_method
from gkd_scale.segment.methods.student import StudentWithMethod, segmenter_in
from gkd_scale.segment.metrics import mean_iou
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.segment.training_set import count_pixels, open_training_set, order_of
from gkd_scale.types import Features, LiveTeacher, SegDataset

KIND = "stage2"
BEST_FILE = "best.json"
BEST_FOLDER = "best"
DEFAULT_GLOBAL_BATCH = 16
_VAL_BATCH = 8


def run(config: Stage2Config, runtime: Runtime, launchers: Path) -> None:
    """Train, validate and export into ``--out``; the same call resumes. Collective.

    ``launchers`` is the folder with the DeepSpeed configs.
    """
    plan = runs.deepspeed_plan(config.run, runtime, launchers, DEFAULT_GLOBAL_BATCH)
    with runs.hold(runtime, [config.run.out], dry=config.run.dry_run):
        _run(config, runtime, plan)


def _run(config: Stage2Config, runtime: Runtime, plan: DeepSpeedPlan) -> None:
    """The run, in its claimed folder. All checks come before the first write."""
    start = time.monotonic()
    complete = runtime.on_main(lambda: runs.is_done(config.run.out, KIND))
    train, val = _datasets(config, runtime, check=config.data.check and not complete)
    domains = dict(zip(config.data.val_sets(), val.parts, strict=True))
    segmenter = build_segmenter(config, len(train.classes))
    module = _with_method(config, segmenter, train, runtime)
    identity = _identity(config, plan, segmenter, train, val)
    if isinstance(module, StudentWithMethod):
        identity["taught_by"] = module.teacher.identity()
    if complete:
        runs.require_same(config.run.out, identity)
        _say(
            runtime,
            f"{_name(config.run.out)} is already complete: {_name(config.run.out / export.CARD_FILE)}",
        )
        return
    runtime.on_main(lambda: _begin(config, identity, module))
    validator = Validator(segmenter, domains, config, runtime, train.absent)
    _say(runtime, _introduction(config, plan, segmenter, train, val))
    job = _job(config, module, validator, segmenter.backbone.name, identity)
    training = _training_plan(config, runtime, plan, segmenter, train)
    if config.run.dry_run:
        dry_run.show(config, [job], training, runtime, plan, dry_run.Data(len(train)))
        return
    loop.fit([job], training, runtime, plan)
    best = runtime.on_main(lambda: validator.export(train))
    seconds = round(time.monotonic() - start, 1)
    runtime.on_main(lambda: runs.finish(config.run.out, KIND, identity, seconds=seconds, best=best))
    _say(
        runtime,
        f"[green]done[/] in {seconds:.0f} s: best in-domain mIoU [bold]{best['miou']:.2f}[/] at step "
        f"{best['step']}; {_name(config.run.out / export.CARD_FILE)}",
    )
    if runtime.main:
        evaluate = [part for ref in _unseen(config) for part in ("--data", ref)]
        console.paste("next: ", "gkd-scale", "evaluate", config.run.out, *evaluate)
        console.out.print("      with a --data NAME=ADAPTER:PATH for each domain that it has never seen")


def _unseen(config: Stage2Config) -> list[str]:
    """Domains to evaluate on, NAME=ADAPTER:PATH: the embedded ones, or those of the run's validation."""
    if config.data.val:
        return [f"val{number or ''}={ref}" for number, ref in enumerate(config.data.val)]
    root = Path(DEFAULT_VAL.partition(":")[2]).parents[1]
    return [f"{name}=embedded:{root / name}" for name in UNSEEN]


def _begin(config: Stage2Config, identity: dict[str, Any], module: nn.Module) -> None:
    """Write the run's identity and options, after all other checks. Rank 0."""
    if config.run.dry_run:
        runs.require_begun_alike(config.run.out, config, identity)
        return
    runs.begin(config.run.out, config, KIND, identity)
    if isinstance(module, StudentWithMethod) and config.method.teacher.name is not None:
        module.teacher.conditioning.save(config.run.out, _conditioned_by(config, module.teacher.model))
    _forget_stale_best(config.run.out)


def _job(
    config: Stage2Config, module: nn.Module, validator: Validator, student: str, identity: dict[str, Any]
) -> loop.Job:
    return loop.Job(
        title="stage 2",
        module=module,
        lr=lambda step: learning_rate(config, step),
        out=config.run.out,
        optim=config.optim,
        hooks=[loop.Hook(config.val_every, lambda step, module: validator(step, segmenter_in(module)))],
        identity=identity,
        config=configs.to_dict(config),
        tags={"kind": KIND, "student": student, "head": config.head, "gkd_scale": __version__},
        final=lambda: {f"best_{name}": value for name, value in (read_best(config.run.out) or {}).items()},
    )


def _training_plan(
    config: Stage2Config, runtime: Runtime, plan: DeepSpeedPlan, segmenter: Segmenter, train: Datasets
) -> loop.TrainingPlan:
    order = order_of(config, train, runtime.on_main(lambda: count_pixels(config, train)))
    stream = TrainStream(
        train, config.size(), config.augment, config.run.seed, segmenter.fill, config.run.workers, order
    )
    return loop.TrainingPlan(
        stream.batches(
            micro=plan.micro_batch, accumulation=plan.accumulation, rank=runtime.rank, world=runtime.world
        ),
        config.run.steps,
        config.run,
        lambda: "reading and augmenting images; give --workers more, where cores are idle",
    )


def _identity(
    config: Stage2Config, plan: DeepSpeedPlan, segmenter: Segmenter, train: SegDataset, val: SegDataset
) -> dict[str, Any]:
    """What decides the result: a resumed run must not change it. A backbone is known by its weights."""
    identity = runs.identity(
        config,
        backbone=fingerprint(segmenter.backbone.net),
        classes=list(train.classes),
        images=[len(train), len(val)],
        steps=config.run.steps,
        global_batch=plan.global_batch,
    )
    del identity["check"]
    return identity


def _introduction(
    config: Stage2Config, plan: DeepSpeedPlan, segmenter: Segmenter, train: SegDataset, val: SegDataset
) -> str:
    trained, total = (
        sum(p.numel() for p in segmenter.parameters() if p.requires_grad or whole) for whole in (False, True)
    )
    return (
        f"[bold]stage 2[/] {config.head} head on {segmenter.backbone.name}, "
        f"{config.method.name or config.backbone.adapt}: "
        f"{trained:,} of {total:,} parameters are trained\n"
        f"{len(train)} images to train on, {len(val)} to validate on, {len(train.classes)} classes; "
        f"{config.run.steps} steps of {plan.global_batch} images ({plan.summary()}); {_name(config.run.out)}"
        + "".join(f"\n{plan.path.name}: {note}" for note in plan.notes)
    )


def _name(path: Path) -> str:
    """A path for a text with markup."""
    return console.escape(str(path))


def _say(runtime: Runtime, text: str) -> None:
    if runtime.main:
        console.out.print(text)


def learning_rate(config: Stage2Config, step: int) -> float:
    """Linear warmup, then polynomial decay to 0 at the last step."""
    optim = config.optim
    return schedule.poly(
        step,
        base=config.peak_lr(),
        steps=config.run.steps,
        power=optim.power,
        warmup=round(optim.warmup * config.run.steps),
        warmup_lr=optim.warmup_lr,
    )


def build_segmenter(config: Stage2Config, classes: int) -> Segmenter:
    """Backbone and head of the config; a pure function of files and seed."""
    backbone = _backbone(config)
    size = config.size()
    if any(side % backbone.stride for side in size):
        near = "x".join(str(max(1, round(side / backbone.stride)) * backbone.stride) for side in size)
        raise ConfigError(
            f"--image-size {config.image_size} is not made of multiples of {backbone.stride}, "
            f"the stride of {backbone.name}",
            f"use --image-size {near}",
        )
    head = build_head(config.head, backbone.channels, classes, config.head_args, seed=config.run.seed)
    return Segmenter(
        backbone, head, frozen=config.backbone.adapt != "full", last_blocks=config.backbone.last_blocks()
    )


def _with_method(
    config: Stage2Config, segmenter: Segmenter, train: SegDataset, runtime: Runtime
) -> nn.Module:
    """The segmenter, or the segmenter with ``config.method`` beside it and its teacher on this device."""
    method = config.method
    if method.name is None or not method.distils:
        return segmenter
    head = None
    if method.teacher_head is not None:
        head, card = export.load_segmenter(method.teacher_head)
        if list(card.classes) != list(train.classes):
            raise ConfigError(
                f"--teacher-head {method.teacher_head} was trained on other classes than --train has",
                "train the teacher's head on the same data",
            )
    model = None
    if method.teacher.name is not None:
        model = load_teacher(method.teacher, config.size(), str(runtime.device))
    conditioning = runtime.on_main(lambda: _conditioning(config, model, train)) if model else None
    teacher = MethodTeacher(model, head, conditioning)
    return StudentWithMethod(
        segmenter,
        build_method(method.name, segmenter.backbone, teacher, method.args, seed=config.run.seed),
        teacher,
    )


def _conditioned_by(config: Stage2Config, teacher: LiveTeacher) -> str:
    """The digest of all settings that decide the conditioning."""
    of = {"teacher": teacher.fingerprint(), "train": config.data.train_sets()}
    return conditionings.key(config.method.conditioning, **of)


def _conditioning(config: Stage2Config, teacher: LiveTeacher, train: SegDataset) -> Conditioning:
    """The conditioning that the run began with; a new run fits it to the teacher's tokens of whole training
    images at the training size. Rank 0.
    """
    method = config.method

    def features() -> Iterator[Features]:
        pixels = probe.load(
            train, config.size(), most=conditionings.SAMPLES, workers=config.run.workers
        ).pixels
        for batch in pixels.split(probe.BATCH):
            yield teacher(batch)

    return conditionings.load_or_make(
        config.run.out,
        _conditioned_by(config, teacher),
        lambda: conditionings.fit(features(), method.conditioning.norm, method.conditioning.power),
    )


def _backbone(config: Stage2Config) -> Backbone:
    ref = config.backbone.path()
    if ref is not None and str(ref) != "pretrained" and not ref.exists():
        stage1 = shell("deepspeed", "launchers/stage1.py", "--ds-config", config.run.ds_config, "--out", ref)
        raise RunError(f"there is no backbone {ref}", f"train it first ({stage1}), or give --backbone")
    if ref is not None and ref.resolve() == config.run.out.resolve():
        raise ConfigError(f"--backbone and --out are both {ref}", "give --out a folder of its own")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("stage2", "backbone", config.run.seed))
        backbone = load_backbone(ref, config.backbone.student_name(), config.backbone.args)
    spec = backbone.spec
    return Backbone(
        backbone.net,
        replace(spec, mean=config.backbone.mean or spec.mean, std=config.backbone.std or spec.std),
    )


def _datasets(config: Stage2Config, runtime: Runtime, *, check: bool) -> tuple[Datasets, Datasets]:
    """Training and validation data of one class list; with ``check``, rank 0 reads it all once."""

    def open_both() -> tuple[Datasets, Datasets]:
        train, val = open_training_set(config), registry.open_all(config.data.val_sets())
        registry.require_classes(val, train.classes, config.data.val_sets()[0], config.data.train_sets()[0])
        return train, val

    runtime.on_main(lambda: _check(*open_both(), config) if check else None)
    return open_both()


def _check(train: Datasets, val: Datasets, config: Stage2Config) -> None:
    how = Inference(config.inference.windows(config.size()))
    with console.progress() as progress:
        task = progress.add_task("checking images and labels", total=len(train) + len(val))
        registry.check(train, config.run.workers, lambda: progress.advance(task), least=2)
        for dataset in val.parts:
            require = partial(require_bounded_sample, dataset=dataset.name, size=config.size(), how=how)
            registry.check(dataset, config.run.workers, lambda: progress.advance(task), require)


class Validator:
    """The hook that scores the trained segmenter on in-domain validation and keeps the best step.

    Each of ``domains`` (by name) has its own mIoU; the score is their mean. A class counts if it may occur
    in labels of the domain and, by ``absent``, of the training data.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        domains: Mapping[str, SegDataset],
        config: Stage2Config,
        runtime: Runtime,
        absent: Sequence[str] = (),
    ) -> None:
        self._copy = copy.deepcopy(segmenter).to(runtime.device)
        self._domains = domains
        self._absent = absent
        self._config = config
        self._runtime = runtime
        self._how = Inference(config.inference.windows(config.size()))

    def __call__(self, step: int, module: nn.Module) -> dict[str, float]:
        """Score the segmenter inside ``module`` after ``step`` steps. Collective."""
        self._load(full_state(module))
        self._copy.eval()
        scores = {}
        for name, dataset in self._domains.items():
            total = confusion_of_ranks(
                self._copy,
                dataset,
                self._config.size(),
                self._runtime,
                how=self._how,
                batch_size=_VAL_BATCH,
                workers=self._config.run.workers,
            )
            scores[name] = mean_iou(f"--val {name}", total, dataset, self._absent).miou
        score = statistics.fmean(scores.values())
        self._runtime.on_main(lambda: self._keep_if_best(step, score))
        per_domain = {f"val_miou/{name}": value for name, value in scores.items()} if len(scores) > 1 else {}
        return {"val_miou": score, **per_domain}

    def _load(self, state: dict[str, Tensor]) -> None:
        frozen, backbone = self._copy.kept, below(state, "backbone.")
        before = self._copy.backbone.state_dict()
        assert_same(*({name: tensors[name] for name in frozen} for tensors in (before, backbone)))
        self._copy.head.load_state_dict(below(state, "head."))
        self._copy.backbone.load_state_dict({**backbone, **{name: before[name] for name in frozen}})

    def _keep_if_best(self, step: int, score: float) -> None:
        out = self._config.run.out
        best = read_best(out)
        if best is not None and not score > best["miou"]:
            return
        folder = out / BEST_FOLDER / str(step)
        export.save_head(folder, self._copy.head)
        if not self._copy.frozen:
            self._copy.backbone.save(folder)
        files.write_json(out / BEST_FILE, {"step": step, "miou": score})
        for other in (out / BEST_FOLDER).iterdir():
            if other != folder:
                shutil.rmtree(other)

    def export(self, train: SegDataset) -> dict[str, Any]:
        """Make the best step the run's export, and return ``best.json``. Rank 0 only."""
        config, out = self._config, self._config.run.out
        best = read_best(out)
        if best is None:
            raise RunError(f"{out} holds no validated step", "remove the folder and run stage 2 again")
        for file in sorted((out / BEST_FOLDER / str(best["step"])).iterdir()):
            files.write_bytes(out / file.name, file.read_bytes())
        if self._copy.frozen:
            self._copy.backbone.save(out)
        card = export.Card(
            head=config.head,
            head_args=config.head_args,
            classes=list(train.classes),
            palette=[(int(r), int(g), int(b)) for r, g, b in train.palette],
            image_size=config.size(),
            adapt=config.backbone.adapt,
            step=best["step"],
            miou=best["miou"],
            windows=self._how.windows,
            absent=list(train.absent),
        )
        export.save_card(out, card)
        return best


def read_best(out: Path) -> dict[str, Any] | None:
    """``{"step": n, "miou": 0..100}`` of the best step so far; None before the first validation."""
    return files.read_json(out / BEST_FILE) or None


def _forget_stale_best(out: Path) -> None:
    """Remove the best step of a run that ended before its first checkpoint: training starts anew."""
    if not any((out / runs.CHECKPOINTS).glob("*")):
        (out / BEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(out / BEST_FOLDER, ignore_errors=True)


def assert_same(old: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    """AssertionError unless the tensors are equal bit for bit, in the precision that was trained in."""
    assert old.keys() == new.keys(), "the frozen backbone has other tensors than were loaded"
    for name, now in new.items():
        before = old[name].cpu().to(now.dtype)
        same = before.shape == now.shape and torch.equal(_bytes(before), _bytes(now))
        assert same, f"the frozen backbone's '{name}' changed during stage 2"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
