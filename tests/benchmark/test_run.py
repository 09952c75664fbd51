"""Running: what is done is not done again, a changed command is, a failure stops and is gone on from."""

from __future__ import annotations

import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from gkd_scale.benchmark.cells import Work
from gkd_scale.benchmark.config import BenchmarkConfig, read_recipe
from gkd_scale.benchmark.run import benchmark, page, run
from gkd_scale.benchmark.table import Score, markdown, seconds
from gkd_scale.errors import ConfigError, GkdError
from gkd_scale.models.backbone import Backbone
from gkd_scale.report.config import ReportConfig
from gkd_scale.segment.arguments import WEIGHT
from gkd_scale.segment.config import Stage2Config
from gkd_scale.segment.methods.base import Method, MethodInputs, MethodTeacher
from gkd_scale.segment.methods.registry import METHODS, MethodRow, build_method
from gkd_scale.subprocesses import Step
from tests.commands import parse
from tests.conftest import ROOT
from tests.segment.support import tiny_backbone


def touch(name: str, out: Path, code: str = "") -> Work:
    """A step that adds a line to a file."""
    script = f"{code}\nopen({str(out / name)!r}, 'a').write('x')"
    return Work(name, Step(name, ["python", "-S", "-c", script]), out / name, "touch")


def test_the_same_call_goes_on_where_it_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    works = [touch("a", tmp_path), touch("b", tmp_path, "raise SystemExit('no luck')"), touch("c", tmp_path)]
    with pytest.raises(GkdError, match="'b' failed with exit code 1"):
        run(works, tmp_path)
    assert "no luck" in capfd.readouterr().err
    works[1] = touch("b", tmp_path)
    seconds = run(works, tmp_path)
    assert list(seconds) == ["a", "b", "c"]
    assert [(tmp_path / name).read_text() for name in "abc"] == ["x", "x", "x"]
    output = capfd.readouterr().out
    assert "2/3 (about 0 min left) b" in output and "1/3" not in output
    assert run(works, tmp_path) == pytest.approx(seconds, abs=0.1)
    assert (tmp_path / "a").read_text() == "x"


def test_a_changed_command_or_a_lost_result_is_run_again(tmp_path: Path) -> None:
    run([touch("a", tmp_path)], tmp_path)
    run([touch("a", tmp_path, "pass")], tmp_path)
    assert (tmp_path / "a").read_text() == "xx"
    (tmp_path / "a").unlink()
    run([touch("a", tmp_path, "pass")], tmp_path)
    assert (tmp_path / "a").read_text() == "x"


def chain(out: Path, first: str = "", second: str = "") -> list[Work]:
    """A folder that cannot be gone on from by another command, and a step that reads it."""
    folder = out / "a"
    code = f"import os\nos.makedirs({str(folder)!r})\nopen({str(folder / 'x')!r}, 'w').write({first!r})"
    a = Work("a", Step("a", ["python", "-S", "-c", code]), folder / "x", "touch", folder=folder)
    return [a, replace(touch("b", out, second), needs=("a",))]


def test_what_a_changed_step_wrote_is_set_aside_and_what_needs_it_is_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(chain(tmp_path), tmp_path)
    (tmp_path / "a/mark").write_text("first")
    run(chain(tmp_path), tmp_path)
    assert (tmp_path / "b").read_text() == "x"
    capsys.readouterr()
    run(chain(tmp_path, "pass"), tmp_path)
    assert (tmp_path / "b").read_text() == "xx" and not (tmp_path / "a/mark").exists()
    assert (tmp_path / "old/a-1/mark").read_text() == "first"
    assert "old/a-1" in capsys.readouterr().out.replace("\n", "")
    run(chain(tmp_path, "pass", "pass"), tmp_path)
    assert (tmp_path / "b").read_text() == "xxx" and not (tmp_path / "old/a-2").exists()


def test_seconds_are_those_of_all_attempts(tmp_path: Path) -> None:
    """A step that fails at first, by the same command."""
    missing = f"not os.path.exists({str(tmp_path / 'ok')!r})"
    works = [touch("a", tmp_path, f"import os, time\ntime.sleep(0.3)\nif {missing}: raise SystemExit(1)")]
    with pytest.raises(GkdError):
        run(works, tmp_path)
    assert seconds(tmp_path) == {}
    (tmp_path / "ok").touch()
    assert run(works, tmp_path)["a"] >= 0.6
    assert seconds(tmp_path)["a"] >= 0.6


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no program 'get-it'"):
        run([Work("a", Step("a", ["get-it", "now"]), tmp_path / "a", "prepare")], tmp_path)
    run([Work("b", Step("b", ["true"]), tmp_path / "done/b.json", "prepare")], tmp_path)


def test_a_step_that_ends_well_without_its_result_was_stopped_and_goes_on(tmp_path: Path) -> None:
    work = Work("a", Step("a", ["python", "-S", "-c", "import time; time.sleep(0.2)"]), tmp_path / "a", "x")
    with pytest.raises(GkdError, match="'a' was stopped before its end"):
        run([work], tmp_path)
    (tmp_path / "a").touch()
    assert run([work], tmp_path)["a"] >= 0.4


def test_the_same_result_again_leaves_what_needs_it_alone(tmp_path: Path) -> None:
    run(chain(tmp_path), tmp_path)
    shutil.rmtree(tmp_path / "a")
    run(chain(tmp_path), tmp_path)
    assert (tmp_path / "a/x").exists() and (tmp_path / "b").read_text() == "x"


def test_two_calls_share_a_step(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    works = [touch("a", tmp_path, "import time; time.sleep(1)")]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run(works, tmp_path), range(2)))
    assert (tmp_path / "a").read_text() == "x" and both[0] == both[1]
    assert "another call runs 'a'" in capfd.readouterr().out


def config(tmp_path: Path, **values: object) -> BenchmarkConfig:
    defaults = {
        "recipe": ROOT / "benchmarks/recipes/camvid.yaml",
        "out": tmp_path,
        "launchers": ROOT / "launchers",
    }
    return BenchmarkConfig(**{**defaults, **values})  # type: ignore[arg-type]


def test_a_dry_run_prints_budget_and_commands_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark(config(tmp_path / "out", dry_run=True, only=["gkd/1"], passes=4800, data=Path("some/data")))
    output = capsys.readouterr().out
    assert "4800 student passes" in output and "1a: 200" in output
    commands = [line for line in output.splitlines() if line.startswith(("deepspeed", "gkd-scale"))]
    assert [line.split()[1].split("/")[-1] for line in commands] == [
        "cache-teacher", "cache-teacher", "stage1.py", "stage1.py", "stage2.py", "evaluate",
    ]  # fmt: skip
    assert "--seed 1" in commands[2] and "some/data/proxy_imagenet" in commands[0]
    assert not (tmp_path / "out").exists()


class Toy(Method):
    """Takes an image three times and asks for the teacher's logits if there are any."""

    def __init__(self, backbone: Backbone, teacher: MethodTeacher, *, weight: float = 1.0) -> None:  # noqa: ARG002
        super().__init__()
        self.weight = weight

    def forward(self, inputs: MethodInputs) -> dict[str, Tensor]:
        return {"loss_toy": self.weight * inputs.student.features.patches.square().mean()}


def test_a_method_from_outside_needs_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = MethodRow("Toy of a test", f"{__name__}:Toy", {"weight": WEIGHT}, passes=3.0, logits="used")
    monkeypatch.setitem(METHODS, "toy", row)
    lines = (ROOT / "benchmarks/recipes/embedded.yaml").read_text().splitlines()
    rest = [line for line in lines if not line.startswith("methods:")]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join([*rest, "methods: [none, toy]", ""]))
    benchmark(config(tmp_path / "out", recipe=path, dry_run=True, only=["toy/0"], passes=48_000))
    output = capsys.readouterr().out
    commands = [line for line in output.splitlines() if line.startswith(("deepspeed", "gkd-scale"))]
    _, options = parse(commands[-2])
    assert (
        isinstance(options, Stage2Config)
        and options.method.name == "toy"
        and options.backbone.adapt == "full"
    )
    assert options.method.teacher.name == "demo_teacher" and options.method.teacher_head is not None
    assert (
        options.run.steps == round(48_000 / (3 * options.run.global_batch))
        and f"single: {options.run.steps}" in output
    )
    method = build_method("toy", tiny_backbone(), MethodTeacher(), {"weight": 2.0})
    assert isinstance(method, Toy) and method.weight == 2.0
    with pytest.raises(ConfigError, match="method 'toy' has no argument 'ratio'"):
        parse(f"{commands[-2]} --method-args ratio=1")
    recipe = read_recipe(path, tmp_path / "data", tmp_path)
    table = markdown(recipe, {"toy": {"Avg": Score((1.0,))}})
    assert "| Toy of a test | 1.0 |" in table


def test_without_launchers_it_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run from a checkout"):
        benchmark(config(tmp_path, launchers=tmp_path))


def test_the_page_shows_a_run_of_each_method_that_was_evaluated(tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "benchmarks/recipes/camvid.yaml", tmp_path / "data", tmp_path)
    assert page(recipe, tmp_path) is None
    for cell in ("gkd/seed1", "gkd/seed2", "none/seed0"):
        (tmp_path / cell / "head").mkdir(parents=True)
        (tmp_path / cell / "head/evaluation.json").write_text("{}")
    step = page(recipe, tmp_path)
    assert step is not None
    _, options = parse(shlex.join(step.command))
    assert isinstance(options, ReportConfig)
    assert options.runs == [tmp_path / "none/seed0/head", tmp_path / "gkd/seed1/head"]
    assert list(options.domains()) == ["day", "dusk"] and options.teacher_weights is not None
