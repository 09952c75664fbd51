"""Kind M: equal keys, and what else makes a YAML or JSON say something else than it seems to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gkd_scale import config
from gkd_scale.distill.config import Stage1Config
from tests.cases.case import Bench, case
from tests.conftest import ROOT

KIND = "M. Equal keys in YAML and JSON"


def _preset(what: str, text: str | bytes, *messages: str) -> None:
    """A preset that is refused in one line, which says ``messages``."""

    def run(bench: Bench) -> object:
        preset = bench.folder / "preset.yaml"
        preset.write_bytes(text if isinstance(text, bytes) else text.encode())
        ran = bench.stage1("--config", preset, "--out", bench.folder / "run")
        assert ran.code == 2 and "preset.yaml" in ran.text and all(each in ran.text for each in messages), (
            ran.text
        )
        assert not (bench.folder / "run").exists()
        return ran

    case(KIND, what)(run)


def _read(what: str, text: str | bytes, right: Callable[[Stage1Config], bool]) -> None:
    """A preset that is read as its writer meant it."""

    def run(bench: Bench) -> object:
        preset = bench.folder / "preset.yaml"
        preset.write_bytes(text if isinstance(text, bytes) else text.encode())
        cfg = config.parse(Stage1Config, ["--config", str(preset)], prog="stage1.py", description="")
        assert right(cfg)
        return "ok"

    case(KIND, what)(run)


_preset("a preset that says `steps` twice", "steps: 10\nsteps: 20\n", "'steps'", "lines 1 and 2")
_preset(
    "a preset with two `lr` in `optim`",
    "optim:\n  lr: 1e-3\n  warmup: 0.1\n  lr: 1e-4\n",
    "'optim.lr'",
    "lines 2 and 4",
)
_preset("two sections `optim`", "optim:\n  lr: 1e-3\nsteps: 5\noptim:\n  warmup: 0.1\n", "'optim'", "1 and 4")
_preset("equal keys in braces", "optim: {lr: 1e-3, lr: 1e-4}\n", "'optim.lr'", "in line 1")
_preset('`steps` and `"steps"`', 'steps: 10\n"steps": 20\n', "'steps'", "lines 1 and 2")
_preset("`student_args` with `depth` twice", "student_args: {depth: 2, depth: 4}\n", "'student_args.depth'")
_preset("an empty preset", "", "is empty")
_preset("a preset of a list", "- steps: 10\n- seed: 1\n", "holds a list")
_preset("a preset with tabs", "optim:\n\tlr: 1e-3\n", "line 2", "tab")
_preset("a preset in UTF-16", "steps: 10\n".encode("utf-16"), "UTF-8")
_preset("a preset in Latin-1", "out: läufe\n".encode("latin-1"), "UTF-8")
_preset("an alias to nothing", "optim: *usual\n", "line 1")
_preset("`optim.lr: 1e-3` in a preset, as in a space", "optim.lr: 1e-3\n", "write 'lr' below 'optim:'")
_preset("`keep_every: None`, as in Python", "keep_every: None\n", "'keep_every'", "null")
_preset(
    "`student_args: {qkv_bias: no}`",
    "student_args: {qkv_bias: no}\n",
    "'student_args.qkv_bias'",
    "true or false",
)
_preset("`!!python/object` in a preset", "out: !!python/object/apply:os.getcwd []\n", "line 1")
_read("`lr: 1e-3`, which YAML 1.1 takes for a text", "optim: {lr: 1e-3}\n", lambda cfg: cfg.optim.lr == 1e-3)
_read(
    "`drop_path_rate: 1e-1` in `student_args`",
    "student_args: {drop_path_rate: 1e-1}\n",
    lambda cfg: cfg.student.args == {"drop_path_rate": 0.1},
)
_read("`compile: on`", "compile: on\n", lambda cfg: cfg.compile is True)
_read(
    "`out: 2026-01-31`, which YAML takes for a date",
    "out: 2026-01-31\n",
    lambda cfg: str(cfg.run.out) == "2026-01-31",
)
_read("`seed: 010`, which YAML 1.1 takes for 8", "seed: 010\n", lambda cfg: cfg.run.seed == 10)
_read("a preset with a byte order mark", b"\xef\xbb\xbfsteps: 7\n", lambda cfg: cfg.run.steps == 7)
_read(
    "a merge key `<<`, and a key that replaces one of what it merges",
    "student:\n- &usual {name: a, drop_path: 0.1}\n- {<<: *usual, name: b}\n",
    lambda cfg: (
        [(each.student.names, each.student.drop_path) for each in cfg.per_student()]
        == [(["a"], 0.1), (["b"], 0.1)]
    ),
)


_read(
    "`out: ~/runs/1a` and `cache: [~/caches/a]`, which no shell expands",
    "out: ~/runs/1a\ncache: [~/caches/a]\n",
    lambda cfg: (cfg.run.out, cfg.source.cache) == (Path.home() / "runs/1a", [f"{Path.home()}/caches/a"]),
)


@case(KIND, "two equal keys in a DeepSpeed JSON, deep inside")
def deep_in_json(bench: Bench) -> object:
    path = bench.folder / "zero.json"
    path.write_text('{\n  "zero_optimization": {\n    "stage": 2,\n    "stage": 3\n  }\n}\n')
    ran = bench.stage1("--ds-config", path, "--out", bench.folder / "run")
    assert ran.code == 2 and "'zero_optimization.stage'" in ran.text and "lines 3 and 4" in ran.text, ran.text
    return ran


@case(KIND, "a space that says `optim.lr` twice, dotted and nested")
def dotted_and_nested(bench: Bench) -> object:
    path = bench.folder / "space.yaml"
    path.write_text("optim.lr: loguniform(1e-4, 1e-2)\noptim:\n  lr: loguniform(1e-5, 1e-3)\n")
    ran = bench.tune("--space", path, "--out", bench.folder / "run")
    assert ran.code == 2 and "'optim.lr' is there twice" in ran.text, ran.text
    return ran


@case(KIND, "a recipe with two `domains`")
def recipe(bench: Bench) -> object:
    text = (ROOT / "benchmarks/recipes/camvid.yaml").read_text()
    path = bench.folder / "recipe.yaml"
    path.write_text(f"{text}domains: {{night: 'camvid:x'}}\n")
    ran = bench.cli("benchmark", path, "--out", bench.folder / "run", "--dry-run")
    assert ran.code == 2 and "'domains' is there twice" in ran.text, ran.text
    return ran


@case(KIND, "`--student-args depth=4 depth=6`")
def key_value(bench: Bench) -> object:
    ran = bench.stage1("--student-args", "depth=4", "depth=6", "--out", bench.folder / "run")
    assert ran.code == 2 and "'depth' twice" in ran.text, ran.text
    return ran
