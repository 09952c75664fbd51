"""Kind K: every command that is printed runs as it is printed, whatever is in its paths."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import yaml

from gkd_scale import config
from gkd_scale.demo.config import DemoConfig
from gkd_scale.distill.config import Stage1Config
from gkd_scale.search import final, summary
from gkd_scale.search.config import SearchConfig
from gkd_scale.segment.config import Stage2Config
from tests.cases import tiny
from tests.cases.case import Bench, Ran, case
from tests.commands import CONFIGS, commands, parse
from tests.conftest import ROOT, cache_flags

KIND = "K. Commands that are printed"
ODD = "my runs #1 [x] 'q' :car:"
"""A folder's name with what a shell, rich's markup and its emoji would eat."""


def paste(bench: Bench, command: str) -> Ran:
    """Run what was printed."""
    words = shlex.split(command)
    if words[0] == "gkd-scale":
        return bench.cli(*words[1:])
    at = next(index for index, word in enumerate(words) if word.endswith(".py"))
    run = {"stage1.py": bench.stage1, "stage2.py": bench.stage2}[Path(words[at]).name]
    return run(*words[at + 1 :])


def odd(bench: Bench) -> Path:
    """An odd folder to work in."""
    folder = bench.folder / ODD
    folder.mkdir()
    return folder


@case(KIND, "stage 1's next: with `--student-args`, a folder with spaces, #, quotes, brackets and :car:")
def after_stage1(bench: Bench) -> object:
    out = odd(bench) / "1a"
    ran = bench.stage1(*tiny.stage1(out))
    (command,) = commands(ran.raw)
    name, cfg = parse(command)
    assert name == "stage2.py" and isinstance(cfg, Stage2Config)
    assert (cfg.backbone.weights, cfg.image_size, cfg.run.ds_config) == (out, "32x48", "zero0.json")
    # As it is printed, but on the case's own images, and fewer steps than would take minutes.
    data = ["--train", f"folder:{tiny.scenes() / 'fit'}", "--val", f"folder:{tiny.scenes() / 'val'}"]
    more = [*data, "--steps", 2, "--global-batch", 4]
    result = paste(bench, shlex.join([*shlex.split(command), *map(str, more)]))
    assert (out.with_name("1a-stage2") / "segmenter.yaml").is_file(), result.text
    return result


@case(KIND, "stage 1's next: of two students, one with a patch size that the default image is no multiple of")
def after_two_students(bench: Bench) -> object:
    out = odd(bench) / "both"
    students = [
        {"name": "vit_tiny_patch16_224", "folder": "a", "args": {**_args(), "patch_size": 8}},
        {"name": "vit_tiny_patch16_224", "folder": "b c", "args": _args()},
    ]
    preset = bench.folder / "preset.yaml"
    preset.write_text(yaml.safe_dump({"student": students}))
    flags = [each for each in tiny.stage1(out) if each not in tiny.STUDENT]
    ran = bench.stage1("--config", preset, *flags)
    pairs = [parse(command) for command in commands(ran.raw)]
    from gkd_scale.segment.stage2 import build_segmenter

    for name, (_, cfg) in zip(("a", "b c"), pairs, strict=True):
        assert isinstance(cfg, Stage2Config) and cfg.backbone.weights == out / name
        build_segmenter(cfg, 3)
    return ran


@case(KIND, "stage 2's next: in such a folder")
def after_stage2(bench: Bench) -> object:
    out = odd(bench) / "head"
    ran = bench.stage2(*tiny.stage2(out))
    (command,) = commands(ran.raw)
    result = paste(bench, command)
    assert (out / "evaluation.json").is_file(), result.text
    return result


@case(KIND, "probe's next: of a teacher with arguments")
def after_probe(bench: Bench) -> object:
    out = odd(bench) / "probe"
    data = ["--train", f"folder:{tiny.scenes() / 'fit'}", "--val", f"folder:{tiny.scenes() / 'val'}"]
    teacher = ["--teacher", "vit_tiny_patch16_224", "--teacher-weights", tiny.teacher()]
    flags = ["--teacher-args", *tiny.STUDENT[3:], "--image-size", "32x48", "--mean", "0.5", "0.5", "0.5"]
    ran = bench.cli("probe", *teacher, *flags, *data, "--out", out)
    first, then = commands(ran.raw)
    result = paste(bench, first)
    assert (out / "cache/manifest.parquet").is_file(), result.text
    name, cfg = parse(then)
    assert name == "stage1.py" and isinstance(cfg, Stage1Config) and cfg.source.cache == [str(out / "cache")]
    return result


@case(KIND, "the hint of a damaged cache, to verify and repair")
def after_damage(bench: Bench) -> object:
    out = odd(bench) / "cache"
    flags = cache_flags(tiny.images(), tiny.teacher(), out)
    assert bench.cli("cache-teacher", *flags).code == 0
    tar = out / "v00/shard-000000.tar"
    tar.write_bytes(bytes(2000) + tar.read_bytes()[2000:])
    ran = bench.cli("verify", out)
    assert ran.code == 1
    command = commands(ran.raw)[-1].partition(" (and")[0]
    weights = ["--teacher-weights", str(tiny.teacher())]
    result = paste(bench, shlex.join([*shlex.split(command.replace("FOLDER", str(tiny.images()))), *weights]))
    assert bench.cli("verify", out).code == 0
    return result


@case(KIND, "an unfinished run given to evaluate: the hint's command")
def hint_of_evaluate(bench: Bench) -> object:
    out = odd(bench) / "head"
    ran = bench.cli("evaluate", out, "--data", f"x=folder:{tiny.scenes() / 'val'}")
    (command,) = commands(ran.raw)
    name, cfg = parse(command)
    assert name == "stage2.py" and isinstance(cfg, Stage2Config) and cfg.run.out == out
    return "ok"


@case(KIND, "stage 2 without its default backbone: the hint's command")
def hint_of_stage2(bench: Bench) -> object:
    flags = tiny.stage2(bench.folder / "head")
    del flags[1:2]
    ran = bench.stage2("--backbone", odd(bench) / "1a", *flags[1:])
    match = re.search(r"\((deepspeed .*)\), or give --backbone", ran.raw)
    assert match, ran.raw
    name, cfg = parse(match[1])
    assert name == "stage1.py" and isinstance(cfg, Stage1Config) and cfg.run.out == bench.folder / ODD / "1a"
    return "ok"


@case(KIND, "a run whose folder begins with '-', and labelled images below `~` (`--train folder:~/town`)")
def dash_and_home(bench: Bench) -> object:
    from gkd_scale.commands import shell

    name, cfg = parse(
        shell("deepspeed", ROOT / "launchers/stage2.py", "--out", Path("-head"), "--backbone=-1a")
    )
    assert name == "stage2.py" and isinstance(cfg, Stage2Config)
    assert (cfg.run.out, cfg.backbone.weights) == (Path("-head"), Path("-1a"))
    with mock.patch.dict(os.environ, {"HOME": str(tiny.scenes())}):
        return bench.stage2(*tiny.stage2(bench.folder / "head", "--train=folder:~/fit", "--val=folder:~/val"))


@case(KIND, "the commands of a benchmark's dry run")
def dry_run(bench: Bench) -> object:
    recipe = ROOT / "benchmarks/recipes/embedded.yaml"
    out = odd(bench) / "bench"
    ran = bench.cli(
        "benchmark", recipe, "--dry-run", "--out", out, "--launchers", ROOT / "launchers", "--only", "*/0"
    )
    pairs = [parse(command) for command in commands(ran.raw)]
    assert {"make-data", "cache-teacher", "stage1.py", "stage2.py", "evaluate"} == {name for name, _ in pairs}
    assert not out.exists()
    return ran


@case(KIND, "the commands of the demo")
def demo(bench: Bench) -> object:
    from gkd_scale.commands import shell
    from gkd_scale.demo.pipeline import plan

    steps = plan(DemoConfig(out=bench.folder / ODD, launchers=ROOT / "launchers"))
    names = [parse(shell(*step.command))[0] for step in steps]
    assert len(names) == len(steps) > 9
    return "ok"


@case(KIND, "the tuner's best command, in the terminal and in best.yaml")
def best(bench: Bench) -> object:
    cfg = SearchConfig(out=odd(bench) / "tune")
    from gkd_scale.commands import shell

    cfg.out.mkdir()
    values = {"cache": tiny.cache(), "student": "vit_tiny_patch16_224", "student_args": _args()}
    choice = config.build(Stage1Config, values)
    (cfg.out / "best.yaml").write_text(config.to_yaml(choice))
    name, result = parse(shell(*summary._command(cfg)))
    assert name == "stage1.py" and isinstance(result, Stage1Config) and result.student.args == _args()
    return "ok"


@case(KIND, "the commands of the tuner's --final")
def final_commands(bench: Bench) -> object:
    cfg = SearchConfig(out=bench.folder / ODD / "tune")
    from gkd_scale.commands import shell

    plan = SimpleNamespace(
        trial=cfg.trial,
        base={"ds_config": "zero0.json"},
        train={"fit": "folder:a b/fit"},
        val={"val": "folder:a b/val"},
        image_size=(32, 48),
    )
    steps = final.commands(cfg, plan, cfg.out / "final", {"x": "folder:a b/val"})
    cfg.out.mkdir(parents=True)
    (cfg.out / "best.yaml").write_text(config.to_yaml(Stage1Config()))
    names = [parse(shell(*step.command))[0] for step, _ in steps]
    assert names == ["stage1.py", "stage2.py", "evaluate"]
    return "ok"


@case(KIND, "every example that a --help shows")
def examples(_bench: Bench) -> object:
    from gkd_scale import cli

    texts = [command.examples for command in cli.COMMANDS.values()] + [cli._usage()]
    for path in [*(ROOT / "launchers").glob("*.py"), ROOT / "tuning/search.py"]:
        source = path.read_text()
        texts.append(source.partition('EXAMPLES = """\\\n')[2].partition('"""')[0].replace("\\\\\n", "\\\n"))
    lines = [re.split(r"  +[a-z]", command)[0] for text in texts for command in commands(text)]
    lines = [command for command in lines if not command.startswith("gkd-scale COMMAND")]
    names = {parse(command)[0] for command in lines}
    assert names >= {*CONFIGS} - {"datasets"}, {*CONFIGS} - names
    return "ok"


def _args() -> dict[str, int]:
    from tests.conftest import TINY

    return dict(TINY)
