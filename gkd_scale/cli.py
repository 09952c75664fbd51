"""``gkd-scale``: a thin front; each command imports what it needs when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gkd_scale import __version__


class Command(NamedTuple):
    """A subcommand: its function, one line of help, and examples."""

    run: Callable[[Sequence[str], str, Command], int | None]
    help: str
    examples: str = ""


def _cache_teacher(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.cache.config import CacheTeacherConfig
    from gkd_scale.config import parse

    cfg = parse(CacheTeacherConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale import console
    from gkd_scale.api import build_cache

    report, outbox = build_cache(cfg)
    for line in report.lines():
        console.out.print(line, markup=False)
    if outbox is not None:
        console.out.print(f"{outbox.url} is complete", markup=False)
    return 0


def _plan(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.cache.config import PlanConfig
    from gkd_scale.config import parse

    cfg = parse(PlanConfig, argv, prog=prog, description=command.help, examples=command.examples)
    import json

    from gkd_scale.distill.plan import estimate, show
    from gkd_scale.distill.recipe import teacher_for
    from gkd_scale.segment.datasets.registry import labelled

    found = estimate(cfg, lambda: teacher_for(cfg, cfg.devices[0]), labelled(cfg.images))
    if cfg.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        show(found, cfg)
    return 0


def _students(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.config import parse
    from gkd_scale.distill.students import StudentsConfig, select, show

    cfg = parse(StudentsConfig, argv, prog=prog, description=command.help, examples=command.examples)
    import json

    rows = select(cfg)
    if cfg.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        show(rows, cfg)
    return 0


def _verify(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.cache.config import VerifyConfig
    from gkd_scale.config import parse

    cfg = parse(VerifyConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale import console
    from gkd_scale.cache.reader import Cache
    from gkd_scale.cache.verify import verify

    def say(line: str) -> None:
        console.out.print(line, markup=False)

    damaged = verify(cfg.cache, say)
    if cfg.rerun_teacher and not damaged:
        from gkd_scale.cache.rerun import rerun
        from gkd_scale.distill.recipe import teacher_of

        cache = Cache.open(cfg.cache)
        teacher = teacher_of(cache.spec, cfg.teacher_weights, cfg.device)
        lines = list(rerun(cache, teacher, cfg.rerun_teacher, cfg.tolerance))
        damaged += _tell(lines, f"{cfg.rerun_teacher} samples computed again: {len(lines)} differ")
    if cfg.ledger is not None and not damaged:
        from gkd_scale.cache.ledger import check_ledger

        cache = Cache.open(cfg.cache)
        sids = [sid for shard in range(len(cache.shard_sizes)) for sid in cache.sids(shard)]
        epochs, lines = check_ledger(cfg.ledger, sids)
        damaged += _tell(lines, f"ledger: {epochs} whole epochs, {len(lines)} faults")
    return 1 if damaged else 0


def _tell(lines: Sequence[str], summary: str) -> int:
    """Print lines and a summary; returns the number of lines."""
    from gkd_scale import console

    for line in (*lines, summary):
        console.out.print(line, markup=False)
    return len(lines)


def _repair(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.cache.config import RepairConfig
    from gkd_scale.config import parse

    cfg = parse(RepairConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale import console
    from gkd_scale.cache.repair import repair
    from gkd_scale.cache.spec import read_spec
    from gkd_scale.distill.recipe import teacher_of
    from gkd_scale.segment.datasets.registry import labelled

    spec = read_spec(cfg.cache)
    teacher = teacher_of(spec, cfg.teacher_weights, cfg.device)
    source = labelled(cfg.images)
    report = repair(cfg, spec, teacher, lambda line: console.out.print(line, markup=False), source=source)
    for line in report.lines():
        console.out.print(line, markup=False)
    return 0


def _push(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.cache.config import PushConfig
    from gkd_scale.config import parse

    cfg = parse(PushConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale import console
    from gkd_scale.cache.remote import push

    sent = push(cfg.cache, cfg.to, lambda name: console.out.print(f"  {name}", markup=False))
    console.out.print(f"{sent} files sent; {cfg.to} is complete", markup=False)
    return 0


def _stats(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.cache.config import StatsConfig
    from gkd_scale.config import parse

    cfg = parse(StatsConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale.cache.reader import Cache
    from gkd_scale.cache.stats import STATS, measure, write_stats

    cache = Cache.open(cfg.cache)
    stats = measure(cache)
    out = cfg.out or cfg.cache / STATS
    write_stats(out, stats, cache.spec.hash())
    _tell(stats.lines(), f"written to {out}")
    return 0


def _inspect(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.cache.config import InspectConfig
    from gkd_scale.config import parse

    cfg = parse(InspectConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale import console
    from gkd_scale.cache.inspect import contact_sheet, describe
    from gkd_scale.cache.reader import Cache

    cache = Cache.open(cfg.cache)
    for line in describe(cache):
        console.out.print(line, markup=False)
    if cfg.sheet is not None:
        contact_sheet(cache, cfg.sheet, cfg.samples, cfg.view)
        console.out.print(f"  sheet    {cfg.sheet}", markup=False)
    return 0


def _certify(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.config import parse
    from gkd_scale.distill.config import CertifyConfig

    cfg = parse(CertifyConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale import console
    from gkd_scale.cache.certificate import certificate_path
    from gkd_scale.distill.certify import certify

    certificate = certify(cfg)
    console.out.print(certificate.line(), markup=False)
    console.out.print(f"stored in {certificate_path(cfg.cache, certificate.codec)}", markup=False)
    return 0


def _evaluate(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.config import parse
    from gkd_scale.segment.config import EvaluateConfig

    cfg = parse(EvaluateConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale.segment.evaluate import evaluate

    evaluate(cfg)
    return 0


def _predict(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.config import parse
    from gkd_scale.segment.config import PredictConfig

    cfg = parse(PredictConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale.segment.predict import predict

    predict(cfg)
    return 0


def _probe(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.config import parse
    from gkd_scale.segment.config import TeacherProbeConfig

    cfg = parse(TeacherProbeConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale.segment.teacher_probe import probe_teacher

    probe_teacher(cfg)
    return 0


def _datasets(argv: Sequence[str], prog: str, command: Command) -> int:
    verbs = {"check": _check_dataset, "convert": _convert_dataset}
    if argv and not argv[0].startswith("-"):
        if argv[0] not in verbs:
            from gkd_scale.errors import ConfigError, nearest

            raise ConfigError(
                f"{prog} has no '{argv[0]}'", nearest(argv[0], verbs) or f"choose one of: {', '.join(verbs)}"
            )
        return verbs[argv[0]](argv[1:], f"{prog} {argv[0]}")
    from gkd_scale.config import parse
    from gkd_scale.segment.datasets.config import DatasetsConfig

    cfg = parse(DatasetsConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale.segment.datasets import catalogue

    if cfg.json:
        import json

        print(json.dumps(catalogue.entries(), indent=2))
    else:
        from gkd_scale import console

        console.out.print(catalogue.table())
        for line in catalogue.places():
            console.out.print(line, markup=False)
    return 0


def _check_dataset(argv: Sequence[str], prog: str) -> int:
    from gkd_scale.config import parse
    from gkd_scale.segment.datasets.config import CheckConfig

    cfg = parse(
        CheckConfig,
        argv,
        prog=prog,
        description="Count files, pairs, sizes and label values; exit 1 where a file is wrong or alone.",
        examples=f"  {prog} cityscapes data/cityscapes\n  {prog} acdc data/acdc@night/val --json\n",
    )
    from gkd_scale.segment.datasets import audit

    reports = audit.check(cfg)
    if cfg.json:
        import json

        print(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        for report in reports:
            audit.show(report)
    return 1 if any(report.faults for report in reports) else 0


def _convert_dataset(argv: Sequence[str], prog: str) -> int:
    from gkd_scale.config import parse
    from gkd_scale.segment.datasets.config import ConvertConfig

    cfg = parse(
        ConvertConfig,
        argv,
        prog=prog,
        description="Convert labels to train ids, or Potsdam's and Vaihingen's tiles to crops.",
        examples=(
            f"  {prog} mapillary data/mapillary data/mapillary19\n"
            f"  {prog} potsdam data/potsdam data/potsdam512\n"
        ),
    )
    from gkd_scale.segment.datasets.convert import convert

    record = convert(cfg)
    _tell(
        [f"not there: {name}" for name in record.get("missing", [])],
        ", ".join(f"{key} {record[key]}" for key in ("tiles", "pairs", "kept") if key in record),
    )
    return 0


def _make_data(argv: Sequence[str], prog: str, command: Command) -> int:
    from gkd_scale.config import parse
    from gkd_scale.demo.config import MakeDataConfig

    cfg = parse(MakeDataConfig, argv, prog=prog, description=command.help, examples=command.examples)
    from gkd_scale.demo.defaults import make_data

    make_data(cfg)
    return 0


def _calls(options: str, function: str) -> Callable[[Sequence[str], str, Command], int | None]:
    """A command that is ``function(options)``, each MODULE:NAME; its result is the exit status."""

    def run(argv: Sequence[str], prog: str, command: Command) -> int | None:
        from gkd_scale.config import parse

        cfg = parse(_named(options), argv, prog=prog, description=command.help, examples=command.examples)
        status: int | None = _named(function)(cfg)
        return status

    return run


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


COMMANDS = {
    "probe": Command(
        _probe,
        "Say which layer of a teacher to cache, how to condition it, and what a student can hope for.",
        """\
  gkd-scale probe --teacher vit_large_patch14_dinov2.lvd142m --image-size 518 \\
      --train cityscapes:data/cityscapes@train --val cityscapes:data/cityscapes@val
  gkd-scale probe --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
      --train folder:city/train --val folder:city/val --image-size 144x192 --out runs/probe
""",
    ),
    "plan": Command(
        _plan,
        "Say what a cache will cost before its first byte: bytes, hours, GB/s, memory.",
        """\
  gkd-scale plan --images imagenet/train --teacher vit_giant_patch14_dinov2.lvd142m --image-size 224 \\
      --views 4 --out caches/proxy --students vit_base_patch16_224 --gpu h100
  gkd-scale plan --images photos --image-size 96x128 --out caches/photos --measure 4 --json
""",
    ),
    "students": Command(
        _students,
        "List students from 1 M to 1 B parameters, with their memory by ZeRO stage.",
        """\
  gkd-scale students
  gkd-scale students --filter dinov2 --gpus 1
  gkd-scale students --filter convnext --millions 5 100 --json
""",
    ),
    "cache-teacher": Command(
        _cache_teacher,
        "Run a teacher once over a folder of images and keep its dense features.",
        """\
  gkd-scale cache-teacher --images imagenet/train --teacher vit_giant_patch14_dinov2.lvd142m \\
      --image-size 224 --views 4 --out caches/proxy
  gkd-scale cache-teacher --images photos --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
      --teacher-args pad_type=same --teacher-layer 3 --image-size 144x192 --out caches/photos
  gkd-scale cache-teacher --config shards/gkd-1a.yaml --images imagenet/train --out caches/1a --ray auto
""",
    ),
    "verify": Command(
        _verify,
        "Check every byte of a cache against its checksums; exit 1 if any is damaged.",
        """\
  gkd-scale verify caches/proxy
  gkd-scale verify caches/proxy --rerun-teacher 16 --ledger runs/1a/ledger
""",
    ),
    "repair": Command(
        _repair,
        "Rebuild what is damaged in a cache, and nothing else.",
        "  gkd-scale repair caches/proxy --images imagenet/train\n",
    ),
    "push": Command(
        _push,
        "Put a finished cache on object storage; training reads it through a local mirror.",
        "  gkd-scale push caches/proxy --to s3://bucket/proxy\n",
    ),
    "stats": Command(
        _stats,
        "Measure mean, covariance and norm of a cache's tokens.",
        "  gkd-scale stats caches/proxy\n",
    ),
    "inspect": Command(
        _inspect,
        "Say what is in a cache, and show its views beside maps of their tokens.",
        "  gkd-scale inspect caches/proxy --sheet proxy.png\n",
    ),
    "certify": Command(
        _certify,
        "Measure what a codec does to the QSD loss, and store the certificate in the cache.",
        """\
  gkd-scale certify caches/small-fp16 --codec int8
  gkd-scale certify caches/proxy --reference caches/small-fp16
""",
    ),
    "evaluate": Command(
        _evaluate,
        "Measure the mIoU of a stage-2 run on domains it has never seen.",
        """\
  gkd-scale evaluate runs/stage2 --data day=camvid:camvid/val_day --data dusk=camvid:camvid/unseen_dusk
  gkd-scale evaluate runs/stage2 --data city=folder:my/city --json city.json --inference slide \
      --window 512 --stride 341
on all GPUs:
  deepspeed launchers/evaluate.py runs/stage2 --data city=folder:my/city
""",
    ),
    "predict": Command(
        _predict,
        "Predict the classes of your images with a stage-2 run: masks, overlays, a contact sheet.",
        """\
  gkd-scale predict runs/stage2 --images photos --out predictions --overlay
  gkd-scale predict runs/stage2 --images 'drive/*/frame-*.jpg' --out predictions --inference slide \
      --window 512 --stride 341
  deepspeed launchers/predict.py runs/stage2 --images s3://bucket/photos --out predictions
""",
    ),
    "report": Command(
        _calls("gkd_scale.report.config:ReportConfig", "gkd_scale.report.report:report"),
        "Show runs on one HTML page: training curves, mIoU by domain and class, images, cost.",
        """\
  gkd-scale report runs/head --data night=folder:elsewhere/night --data fog=folder:elsewhere/fog
  gkd-scale report runs/head runs/none --data dusk=camvid:camvid/unseen_dusk --out compared.html
""",
    ),
    "doctor": Command(
        _calls("gkd_scale.doctor.config:DoctorConfig", "gkd_scale.doctor.examine:doctor"),
        "Check this machine and the nodes of a hostfile: what is ok, what is not, and what to do.",
        """\
  gkd-scale doctor
  gkd-scale doctor --cache caches/proxy --run runs/1a --out runs
  gkd-scale doctor --hostfile launchers/hostfile.example --only network --only nodes
  gkd-scale doctor --json
""",
    ),
    "export": Command(
        _calls("gkd_scale.export.config:ExportConfig", "gkd_scale.export.command:export"),
        "Write a run as a timm or transformers folder, as ONNX or as a torch.export program, checked.",
        """\
  gkd-scale export runs/1b --format timm --out exports/timm
  gkd-scale export runs/head --format transformers --out exports/transformers --push-to-hub user/student
  gkd-scale export runs/head --format onnx --with-head --out exports/onnx
  gkd-scale export runs/head --format onnx --with-head --dtype int8 --out exports/int8 \\
      --data day=camvid:camvid/val_day
  gkd-scale export runs/head --format torch-export --with-head --out exports/pt2
""",
    ),
    "datasets": Command(
        _datasets,
        "List the datasets; 'check NAME PATH' counts what is there, 'convert NAME SRC DST' converts.",
        """\
  gkd-scale datasets
  gkd-scale datasets check cityscapes data/cityscapes
  gkd-scale datasets convert potsdam data/potsdam data/potsdam512
""",
    ),
    "make-data": Command(
        _make_data,
        "Write the embedded scenes: proxy images, a source domain, and unseen domains.",
        "  gkd-scale make-data runs/demo-data\n",
    ),
    "benchmark": Command(
        _calls("gkd_scale.benchmark.config:BenchmarkConfig", "gkd_scale.benchmark.run:benchmark"),
        "Run methods x seeds of a recipe and write the paper's table of what they are worth.",
        """\
  gkd-scale benchmark benchmarks/recipes/gtav.yaml --data /datasets
  gkd-scale benchmark benchmarks/recipes/embedded.yaml --only gkd --only none/0
  gkd-scale benchmark benchmarks/recipes/camvid.yaml --data ../shared --dry-run
""",
    ),
    "demo": Command(
        _calls("gkd_scale.demo.config:DemoConfig", "gkd_scale.demo.pipeline:demo"),
        "Run the whole method on the embedded scenes and show what it is worth.",
        "  gkd-scale demo\n  gkd-scale demo --out runs/demo --seed 1\n",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the process's exit status (0 done, 1 our fault or damage, 2 the user's mistake)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"gkd-scale {__version__}")
        return 0
    name, *rest = arguments
    from gkd_scale import console

    command = COMMANDS.get(name)
    if command is None:
        from gkd_scale.errors import ConfigError, nearest

        console.report(
            ConfigError(f"gkd-scale has no command '{name}'", nearest(name, COMMANDS) or "see --help")
        )
        return 2
    from gkd_scale.memory import keep_freed

    keep_freed()
    return console.run(lambda: command.run(rest, f"gkd-scale {name}", command))


def _usage() -> str:
    commands = "\n".join(f"  {name:<15} {command.help}" for name, command in COMMANDS.items())
    return f"""\
usage: gkd-scale COMMAND [options]

Distil a giant vision foundation model into a small one that still works where it was never trained.

commands:
{commands}

training:
  deepspeed launchers/stage1.py --ds-config zero2.json   distil a student from caches
  deepspeed launchers/stage2.py --ds-config zero2.json   train a segmentation head on it
  python tuning/search.py                                search its hyperparameters

gkd-scale COMMAND --help shows options and examples."""


if __name__ == "__main__":
    sys.exit(main())
