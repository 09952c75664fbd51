"""Recipes: what is read, which commands they become, and that the budget is the same for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale import config
from gkd_scale.benchmark.cells import FROZEN_PASSES, Commands, Work, cells, steps_of
from gkd_scale.benchmark.config import GKD, BenchmarkConfig, Budget, Recipe, methods, read_recipe
from gkd_scale.cache.config import CacheTeacherConfig
from gkd_scale.distill.config import Stage1Config
from gkd_scale.errors import ConfigError
from gkd_scale.segment.config import EvaluateConfig, Stage2Config
from gkd_scale.segment.datasets.registry import ADAPTERS, parse
from gkd_scale.segment.methods.registry import METHODS
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "benchmarks/recipes").glob("*.yaml"))
CONFIGS = {
    "cache-teacher": CacheTeacherConfig,
    "stage1.py": Stage1Config,
    "stage2.py": Stage2Config,
    "evaluate": EvaluateConfig,
}


def recipe(name: str = "embedded") -> Recipe:
    return read_recipe(ROOT / f"benchmarks/recipes/{name}.yaml", Path("data"), Path("out"))


def plan(of: Recipe, *only: str) -> list[Work]:
    return Commands(BenchmarkConfig(Path("x.yaml")), of, Path("out")).works(cells(of, only))


def test_each_of_the_papers_benchmarks_has_a_recipe() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"gtav", "cityscapes_acdc", "potsdam", "gtav_synthia", "gtav_synthia_urbansyn"}
    assert names >= {"rescuenet", "camvid", "embedded"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_parts_that_exist_of_one_class_list_and_trains_on_no_domain_of_its_table(
    path: Path,
) -> None:
    of = recipe(path.stem)
    refs = [parse(ref) for ref in (*of.train, *of.val, *of.domains.values())]
    for ref in refs:
        ADAPTERS[ref.adapter].part(ref.part)
    assert len({tuple(ADAPTERS[ref.adapter].labels.classes) for ref in refs}) == 1
    assert not {*of.train, *of.val} & {*of.domains.values()}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_command_of_a_recipe_is_one_that_its_program_takes(path: Path) -> None:
    works = plan(recipe(path.stem))
    kinds = set()
    for work in works:
        program = Path(work.step.command[1]).name
        if program == "make-data":
            continue
        kinds.add(program)
        options = config.parse(CONFIGS[program], work.step.command[2:], prog=program, description="")
        if isinstance(options, Stage2Config):
            assert options.backbone.adapt == ("full" if options.method.name else "frozen")
    assert kinds == set(CONFIGS)
    assert len({work.name for work in works}) == len(works)


@given(
    st.integers(10_000, 10**7), st.floats(0.1, 0.6), st.floats(0.1, 0.3), st.sampled_from([1, 4, 16]),
    st.sampled_from([8, 64]),
)  # fmt: skip
def test_every_method_spends_the_same_passes(
    passes: int, proxy: float, source: float, batch: int, first: int
) -> None:
    of = recipe()
    of.budget = Budget(passes, proxy, source, 0.5, first, batch)
    per_image = {
        "head": batch * FROZEN_PASSES, "generic": first, "specific": batch,
    }  # fmt: skip
    for method in methods()[1:]:
        per_image["1a"] = per_image["1b"] = first * (GKD[method].passes if method in GKD else 1)
        per_image["single"] = batch * (METHODS[method].passes if method in METHODS else 1)
        steps = steps_of(method, of)
        total = sum(count * per_image[phase] for phase, count in steps.items())
        assert abs(total - passes) <= sum(per_image[phase] for phase in steps)


def test_shared_steps_are_run_once_and_before_what_needs_them() -> None:
    names = [work.name for work in plan(recipe(), "*/0")]
    assert names[0] == "prepare-1"
    for first, then in (
        ("teacher-0-head", "cwd-0-head"), ("teacher-0-head", "g2sd-0-head"),
        ("cache-proxy", "g2sd-0-generic"),
        ("g2sd-0-generic", "g2sd-0-head"), ("gkd-0-1a", "gkd-0-1b"), ("gkd-0-1b", "gkd-0-head"),
    ):  # fmt: skip
        assert names.index(first) < names.index(then)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_step_needs_what_its_command_names(path: Path) -> None:
    """Of all folders that steps write, and nothing that comes after it."""
    works = plan(recipe(path.stem))
    folders = {str(work.folder): work.name for work in works if work.folder is not None}
    for index, work in enumerate(works):
        mentions = [folders[part] for part in work.step.command if part in folders]
        needs = [name for name in work.needs if not name.startswith("prepare")]
        assert sorted(needs) == sorted(name for name in mentions if name != work.name), work.name
        assert {*work.needs} <= {each.name for each in works[:index]}


def test_cells_are_chosen_by_method_and_seed() -> None:
    of = recipe()
    assert cells(of, ["gkd"]) == [("gkd", 0), ("gkd", 1), ("gkd", 2)]
    assert cells(of, ["*/1", "none/0"]) == [("none", 0), *((method, 1) for method in of.methods)]
    with pytest.raises(ConfigError, match="selects no cell"):
        cells(of, ["gkd/7"])


def test_a_teachers_head_is_given_to_methods_that_use_logits() -> None:
    flags = {work.name: work.step.command for work in plan(recipe(), "*/0")}
    with_head = [name for name, command in flags.items() if "--teacher-head" in command]
    assert with_head == ["cwd-0-head", "af-dcd-0-head", "g2sd-0-head"]
    without = recipe()
    without.teacher_head = False
    flags = {work.name: work.step.command for work in plan(without, "*/0")}
    assert [name for name, command in flags.items() if "--teacher-head" in command] == ["g2sd-0-head"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("methods: [vanila-kd]", "did you mean 'vanilla-kd'"),
        ("flags: {stage3: --lr 1}", "did you mean 'stage1'|did you mean 'stage2'"),
        ("seeds: []", "'seeds' is empty"),
        ("seed: [1]", "unknown key 'seed'"),
        ("budget: {passes: 10, proxy: 0.7, source: 0.4}", "no passes are left"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, change: str, message: str) -> None:
    text = (ROOT / "benchmarks/recipes/embedded.yaml").read_text()
    key = change.split(":")[0]
    lines = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
    if key == "flags":
        lines = lines[: next(i for i, line in enumerate(lines) if line.startswith("  stage1"))]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join([*lines, change]))
    with pytest.raises(ConfigError, match=message):
        read_recipe(path, Path("data"), Path("out"))


def test_places_are_put_in() -> None:
    of = recipe()
    assert of.train == ["embedded:out/data/source/train"]
    assert recipe("camvid").teacher.model.weights == Path(
        "data/teacher/mobilenetv2_100_imagenet1k.safetensors"
    )
