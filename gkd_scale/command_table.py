"""The commands of ``gkd-scale``, a row each. Data only: a command imports what it needs when it runs."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command: ``main(config)``, both as ``MODULE:NAME``.

    A command of two words, ``datasets check``, is a verb of the first. ``exit_status`` says whether the
    result of ``main`` is the exit status.
    """

    name: str
    main: str
    config: str
    help: str
    examples: str = ""
    exit_status: bool = False


_TABLE = (
    Command(
        "probe",
        "gkd_scale.segment.teacher_probe:probe_teacher",
        "gkd_scale.segment.config:TeacherProbeConfig",
        "Say which layer of a teacher to cache, how to condition it, and what a student can hope for.",
        """\
  gkd-scale probe --teacher vit_large_patch14_dinov2.lvd142m --image-size 518 \\
      --train cityscapes:data/cityscapes@train --val cityscapes:data/cityscapes@val
  gkd-scale probe --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
      --train folder:city/train --val folder:city/val --image-size 144x192 --out runs/probe
""",
    ),
    Command(
        "plan",
        "gkd_scale.cache_commands:plan",
        "gkd_scale.cache.config:PlanConfig",
        "Say what a cache will cost before its first byte: bytes, hours, GB/s, memory.",
        """\
  gkd-scale plan --images imagenet/train --teacher vit_giant_patch14_dinov2.lvd142m --image-size 224 \\
      --views 4 --out caches/proxy --students vit_base_patch16_224 --gpu h100
  gkd-scale plan --images photos --image-size 96x128 --out caches/photos --measure 4 --json
""",
    ),
    Command(
        "students",
        "gkd_scale.students:main",
        "gkd_scale.students:StudentsConfig",
        "List students from 1 M to 1 B parameters, with their memory by ZeRO stage.",
        """\
  gkd-scale students
  gkd-scale students --filter dinov2 --gpus 1
  gkd-scale students --filter convnext --millions 5 100 --json
""",
    ),
    Command(
        "teachers",
        "gkd_scale.models.teacher_list:main",
        "gkd_scale.models.teacher_list:TeachersConfig",
        "List teachers from 20 M to 7 B parameters, their licence, and which are on this machine.",
        """\
  gkd-scale teachers
  gkd-scale teachers --filter dinov3 --image-size 512
  gkd-scale teachers --here --json
""",
    ),
    Command(
        "cache-teacher",
        "gkd_scale.cache_commands:cache_teacher",
        "gkd_scale.cache.config:CacheTeacherConfig",
        "Run a teacher once over a folder of images and keep its dense features.",
        """\
  gkd-scale cache-teacher --images imagenet/train --teacher vit_giant_patch14_dinov2.lvd142m \\
      --image-size 224 --views 4 --out caches/proxy
  gkd-scale cache-teacher --images photos --teacher mobilenetv2_100 --teacher-weights weights.safetensors \\
      --teacher-args pad_type=same --teacher-layer 3 --image-size 144x192 --out caches/photos
  gkd-scale cache-teacher --config shards/gkd-1a.yaml --images imagenet/train --out caches/1a --ray auto
  gkd-scale cache-teacher --images cache:caches/proxy --teacher vit_large_patch14_dinov2.lvd142m \\
      --out caches/large
""",
    ),
    Command(
        "verify",
        "gkd_scale.cache_commands:verify",
        "gkd_scale.cache.config:VerifyConfig",
        "Check every byte of a cache against its checksums; exit 1 if any is damaged.",
        """\
  gkd-scale verify caches/proxy
  gkd-scale verify caches/proxy --rerun-teacher 16 --ledger runs/1a/ledger
""",
        exit_status=True,
    ),
    Command(
        "repair",
        "gkd_scale.cache_commands:repair",
        "gkd_scale.cache.config:RepairConfig",
        "Rebuild what is damaged in a cache, and nothing else.",
        "  gkd-scale repair caches/proxy --images imagenet/train\n",
    ),
    Command(
        "push",
        "gkd_scale.cache.remote:main",
        "gkd_scale.cache.config:PushConfig",
        "Put a finished cache on object storage; training reads it through a local mirror.",
        "  gkd-scale push caches/proxy --to s3://bucket/proxy\n",
    ),
    Command(
        "stats",
        "gkd_scale.cache.stats:main",
        "gkd_scale.cache.config:StatsConfig",
        "Measure mean, covariance and norm of a cache's tokens.",
        "  gkd-scale stats caches/proxy\n",
    ),
    Command(
        "inspect",
        "gkd_scale.cache.inspect:main",
        "gkd_scale.cache.config:InspectConfig",
        "Say what is in a cache, and show its views beside maps of their tokens.",
        "  gkd-scale inspect caches/proxy --sheet proxy.png\n",
    ),
    Command(
        "certify",
        "gkd_scale.distill.certify:main",
        "gkd_scale.distill.config:CertifyConfig",
        "Measure what a codec does to the QSD loss, and store the certificate in the cache.",
        """\
  gkd-scale certify caches/small-fp16 --codec int8
  gkd-scale certify caches/proxy --reference caches/small-fp16
""",
    ),
    Command(
        "evaluate",
        "gkd_scale.segment.evaluate:evaluate",
        "gkd_scale.segment.config:EvaluateConfig",
        "Measure the mIoU of a stage-2 run on domains it has never seen.",
        """\
  gkd-scale evaluate runs/stage2 --data day=camvid:camvid/val_day --data dusk=camvid:camvid/unseen_dusk
  gkd-scale evaluate runs/stage2 --data city=folder:my/city --json city.json --inference slide \
      --window 512 --stride 341
on all GPUs:
  deepspeed launchers/evaluate.py runs/stage2 --data city=folder:my/city
""",
    ),
    Command(
        "predict",
        "gkd_scale.segment.predict:predict",
        "gkd_scale.segment.config:PredictConfig",
        "Predict the classes of your images with a stage-2 run: masks, overlays, a contact sheet.",
        """\
  gkd-scale predict runs/stage2 --images photos --out predictions --overlay
  gkd-scale predict runs/stage2 --images 'drive/*/frame-*.jpg' --out predictions --inference slide \
      --window 512 --stride 341
  deepspeed launchers/predict.py runs/stage2 --images s3://bucket/photos --out predictions
""",
    ),
    Command(
        "report",
        "gkd_scale.report.report:report",
        "gkd_scale.report.config:ReportConfig",
        "Show runs on one HTML page: training curves, mIoU by domain and class, images, cost.",
        """\
  gkd-scale report runs/head --data night=folder:elsewhere/night --data fog=folder:elsewhere/fog
  gkd-scale report runs/head runs/none --data dusk=camvid:camvid/unseen_dusk --out compared.html
""",
    ),
    Command(
        "doctor",
        "gkd_scale.doctor.examine:doctor",
        "gkd_scale.doctor.config:DoctorConfig",
        "Check this machine and the nodes of a hostfile: what is ok, what is not, and what to do.",
        """\
  gkd-scale doctor
  gkd-scale doctor --cache caches/proxy --run runs/1a --out runs
  gkd-scale doctor --hostfile launchers/hostfile.example --only network --only nodes
  gkd-scale doctor --json
""",
        exit_status=True,
    ),
    Command(
        "export",
        "gkd_scale.export.command:export",
        "gkd_scale.export.config:ExportConfig",
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
    Command(
        "datasets",
        "gkd_scale.segment.datasets.catalogue:main",
        "gkd_scale.segment.datasets.config:DatasetsConfig",
        "List the datasets; 'check NAME PATH' counts what is there, 'convert NAME SRC DST' converts.",
        """\
  gkd-scale datasets
  gkd-scale datasets check cityscapes data/cityscapes
  gkd-scale datasets convert potsdam data/potsdam data/potsdam512
""",
    ),
    Command(
        "datasets check",
        "gkd_scale.segment.datasets.audit:main",
        "gkd_scale.segment.datasets.config:CheckConfig",
        "Count files, pairs, sizes and label values; exit 1 if a file is wrong or has no partner.",
        """\
  gkd-scale datasets check cityscapes data/cityscapes
  gkd-scale datasets check acdc data/acdc@night/val --json
""",
        exit_status=True,
    ),
    Command(
        "datasets convert",
        "gkd_scale.segment.datasets.convert:main",
        "gkd_scale.segment.datasets.config:ConvertConfig",
        "Convert labels to train ids, or Potsdam's and Vaihingen's tiles to crops.",
        """\
  gkd-scale datasets convert mapillary data/mapillary data/mapillary19
  gkd-scale datasets convert potsdam data/potsdam data/potsdam512
""",
    ),
    Command(
        "make-data",
        "gkd_scale.demo.defaults:make_data",
        "gkd_scale.demo.config:MakeDataConfig",
        "Write the embedded scenes: proxy images, a source domain, and unseen domains.",
        "  gkd-scale make-data runs/demo-data\n",
    ),
    Command(
        "benchmark",
        "gkd_scale.benchmark.run:benchmark",
        "gkd_scale.benchmark.config:BenchmarkConfig",
        "Run methods x seeds of a recipe and write the paper's table of what they are worth.",
        """\
  gkd-scale benchmark benchmarks/recipes/gtav.yaml --data /datasets
  gkd-scale benchmark benchmarks/recipes/embedded.yaml --only gkd --only none/0
  gkd-scale benchmark benchmarks/recipes/camvid.yaml --data ../shared --dry-run
""",
    ),
    Command(
        "demo",
        "gkd_scale.demo.pipeline:demo",
        "gkd_scale.demo.config:DemoConfig",
        "Run the whole method on the embedded scenes and show what it is worth.",
        "  gkd-scale demo\n  gkd-scale demo --out runs/demo --seed 1\n",
    ),
    Command(
        "completion",
        "gkd_scale.completion:main",
        "gkd_scale.completion:CompletionConfig",
        "Print the script that makes bash, zsh or fish complete commands, flags, choices and files.",
        """\
  gkd-scale completion bash > ~/.local/share/bash-completion/completions/gkd-scale
  gkd-scale completion zsh > ~/.zfunc/_gkd-scale
  gkd-scale completion fish > ~/.config/fish/completions/gkd-scale.fish
""",
    ),
)
COMMANDS = {command.name: command for command in _TABLE}
"""By name, in the order of ``gkd-scale --help``."""
