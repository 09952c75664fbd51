"""A student of several teachers: losses, draws, runs and what goes on from them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gkd_scale.config import build
from gkd_scale.distill import heads, stage1
from gkd_scale.distill.config import LossConfig, Stage1Config
from gkd_scale.distill.draws import Draws
from gkd_scale.distill.objectives.base import TeacherSpace
from gkd_scale.distill.objectives.qsd import Distiller
from gkd_scale.engine import runlog
from gkd_scale.engine.loop import Hook, Job
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.stop import Stopped
from gkd_scale.errors import ConfigError
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.conditioning import Conditioning
from gkd_scale.models.students import load_student
from gkd_scale.types import Batch, Features
from tests.cases.case import world_of_one
from tests.conftest import ROOT, TINY

NAMES = ("vit_tiny_patch16_224", "vit_small_patch16_224")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with world_of_one() as runtime:
        yield runtime


def config(caches: list[Path], out: Path, **changes: Any) -> Stage1Config:
    values = {
        "ds_config": "zero0.json",
        "cache": caches,
        "student": "vit_tiny_patch16_224",
        "student_args": dict(TINY),
        "out": out,
        "steps": 4,
        "global_batch": 4,
        "workers": 1,
        "log": ["none"],
        "ema": 0.0,
        "loss": {"mask_weight": 1.0, "teacher_drop": 0.3, "teacher_weights": {NAMES[1]: 0.5}},
    }
    return build(Stage1Config, {**values, **changes}, "the test")


def train(runtime: Runtime, cfg: Stage1Config, *hooks: Hook) -> None:
    def prepare(job: Job) -> None:
        job.hooks.extend(hooks)

    stage1.train(cfg, runtime, ROOT / "launchers", prepare)


def rows(out: Path) -> list[dict[str, Any]]:
    pace = {"images_per_s", "data_wait"}
    return [
        {key: value for key, value in row.items() if key not in pace}
        for row in runlog.read(out / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def run(
    tiny_cache: Path, finer_cache: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("joined") / "run"
    train(runtime, config([tiny_cache, finer_cache], out))
    return out


# --------------------------------------------------------------------------------- the objective


def batch(count: int = 4) -> Batch:
    draw = torch.Generator().manual_seed(3)

    def features(tokens: int, dim: int) -> Features:
        return Features(
            torch.randn(count, dim, generator=draw).half(),
            torch.randn(count, tokens, dim, generator=draw).half(),
        )

    return Batch(
        torch.randint(0, 256, (count, 3, 32, 48), dtype=torch.uint8, generator=draw),
        features(6, 20),
        tuple(f"{number:016x}" for number in range(count)),
        (0,) * count,
        tuple(range(count)),
        others=(features(24, 12),),
    )


def pair(loss: LossConfig) -> tuple[Distiller, list[Distiller]]:
    """A student of two teachers, and it again with each teacher alone, by the same heads."""
    spaces = [TeacherSpace(20, (2, 3), Conditioning("layer"), "a", 3.0), TeacherSpace(12, (4, 6), name="b")]

    def create(*of: TeacherSpace) -> Distiller:
        student = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
        return Distiller(student, *of, loss=loss)

    torch.manual_seed(1)
    both, alone = create(*spaces), [create(space) for space in spaces]
    for each, own in zip(alone, both.heads, strict=True):
        each.student.load_state_dict(both.student.state_dict())
        each.heads[0].load_state_dict(own.state_dict())
    return both, alone


def test_the_loss_is_the_weighted_mean_of_those_of_each_teacher_alone() -> None:
    """So is the gradient of the student; that of a teacher's heads is its share of what they have alone."""
    both, alone = pair(LossConfig(mask_weight=1.0))
    one = both.draws.add(batch())
    losses = both(one)
    losses["loss"].backward()
    by_hand = []
    for each, own in zip(alone, one.teachers, strict=True):
        result = each(Batch(one.pixels, own, one.sids, one.epochs, one.positions, one.drawn))
        by_hand.append(result)
        result["loss"].backward()
    torch.testing.assert_close(losses["loss"], 0.75 * by_hand[0]["loss"] + 0.25 * by_hand[1]["loss"])
    for name, result in zip("ab", by_hand, strict=True):
        for key in ("loss", "loss_feature", "loss_cls", "loss_mask", "loss_ladder"):
            torch.testing.assert_close(losses[f"{key}/{name}"], result[key])
    for name, parameter in both.student.named_parameters():
        parts = [each.student.get_parameter(name).grad for each in alone]
        if parameter.grad is not None:
            torch.testing.assert_close(
                parameter.grad, 0.75 * parts[0] + 0.25 * parts[1], atol=1e-6, rtol=1e-4
            )
    for share, own, each in zip((0.75, 0.25), both.heads, alone, strict=True):
        for name, parameter in own.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, share * each.heads[0].get_parameter(name).grad)


def test_a_teacher_counts_for_the_images_that_keep_it_alone() -> None:
    """Its loss is the sum of what each of them has by itself, over how many keep it on average: 5/8 of 4."""
    both, _ = pair(LossConfig(teacher_drop=0.5))
    one = both.draws.add(batch())
    assert one.drawn is not None and [len(rows) for rows in one.drawn.kept] == [3, 1]
    losses = both(one)
    both.draws = replace(both.draws, drop=0.0)
    for number, name in enumerate("ab"):
        alone = []
        for row in one.drawn.kept[number].tolist():
            of, others = (Features(*(each[row : row + 1] for each in teacher)) for teacher in one.teachers)
            image = Batch(
                one.pixels[row : row + 1], of, one.sids[row : row + 1], (0,), (row,), others=(others,)
            )
            alone.append(both(image)[f"loss/{name}"])
        torch.testing.assert_close(losses[f"loss/{name}"], torch.stack(alone).sum() / (4 * 0.625))


@given(
    st.integers(1, 4), st.floats(0.05, 0.95), st.lists(st.text("0123456789abcdef", min_size=1), max_size=6)
)
def test_an_image_keeps_a_teacher_and_the_draw_is_its_own(
    teachers: int, drop: float, sids: list[str]
) -> None:
    draws = Draws(3, teachers=teachers, drop=drop)

    def keeps(names: list[str]) -> list[set[int]]:
        draw = draws(names, [2] * len(names), range(len(names)))
        return [{t for t, rows in enumerate(draw.kept) if row in rows.tolist()} for row in range(len(names))]

    choices = keeps(sids)
    assert all(choices) and keeps(sids[::-1]) == choices[::-1]


def test_a_teacher_is_kept_as_often_as_is_said() -> None:
    draws = Draws(0, teachers=2, drop=0.4)
    names = [f"{number:016x}" for number in range(4000)]
    choices = draws(names, [0] * 4000, range(4000)).kept
    assert [len(rows) / 4000 for rows in choices] == pytest.approx([draws.keep_rate] * 2, abs=0.03)


# ---------------------------------------------------------------------------------------- runs


def test_a_run_says_how_each_teacher_is_learned(run: Path) -> None:
    first = rows(run)[0]
    assert {
        f"{key}/{name}" for key in ("loss", "loss_feature", "loss_mask") for name in NAMES
    } <= first.keys()
    total = (first[f"loss/{NAMES[0]}"] + 0.5 * first[f"loss/{NAMES[1]}"]) / 1.5
    assert first["loss"] == pytest.approx(total, rel=1e-5)
    card = yaml.safe_load((run / "backbone.yaml").read_text())
    assert card["teacher"] == list(NAMES) and len(set(card["teacher_sha256"])) == 2
    identity = yaml.safe_load((run / "run.json").read_text())["identity"]
    assert len(identity["cache"]) == 2 and identity["teachers"] == {NAMES[0]: 1.0, NAMES[1]: 0.5}


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    runtime: Runtime, run: Path, tiny_cache: Path, finer_cache: Path, tmp_path: Path
) -> None:
    def ask(step: int, _module: object) -> dict[str, float]:
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return {}

    cfg = config([tiny_cache, finer_cache], tmp_path)
    with pytest.raises(Stopped):
        train(runtime, cfg, Hook(1, ask))
    train(runtime, cfg)
    assert rows(tmp_path) == rows(run)
    for name in ("backbone.safetensors", "heads.safetensors", "conditioning.safetensors"):
        one, two = (load_file(folder / name) for folder in (tmp_path, run))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_several_students_learn_from_several_teachers_as_each_alone(
    runtime: Runtime, run: Path, tiny_cache: Path, finer_cache: Path, tmp_path: Path
) -> None:
    small = {"name": "vit_tiny_patch16_224", "folder": "small", "args": {**TINY, "depth": 1}}
    students = ["vit_tiny_patch16_224", small]
    train(runtime, config([tiny_cache, finer_cache], tmp_path, student=students))
    assert rows(tmp_path / "vit_tiny_patch16_224") == rows(run)
    assert len(rows(tmp_path / "small")) == 4


def test_the_next_phase_takes_the_heads_of_each_teacher_by_name(
    runtime: Runtime, run: Path, tiny_cache: Path, finer_cache: Path, tmp_path: Path, capsys: Any
) -> None:
    """In another order, and with one teacher alone."""
    before = load_file(run / "heads.safetensors")
    for caches, numbers in (([finer_cache, tiny_cache], (1, 0)), ([finer_cache], (1,))):
        state: dict[str, torch.Tensor] = {}

        def look(job: Job, state: dict[str, torch.Tensor] = state) -> None:
            state.update({name: value.clone() for name, value in job.module.state_dict().items()})

        out = tmp_path / str(len(caches))
        changes = {"student_weights": str(run), "steps": 1, "loss": {"mask_weight": 1.0}}
        stage1.train(config(caches, out, **changes), runtime, ROOT / "launchers", look)
        assert "the QSD heads go on from" in capsys.readouterr().out
        for place, number in enumerate(numbers):
            prefix = conditionings.prefixes(len(caches))[place]
            key = "head_feature.proj_v.1.weight"
            assert torch.equal(state[f"{prefix}{key}"], before[f"teachers.{number}.{key}"])
        assert torch.equal(state["student.mask.token"], before["student.mask.token"])


def test_a_teacher_of_weight_0_leaves_its_pixels(
    runtime: Runtime, tiny_cache: Path, finer_cache: Path, tmp_path: Path
) -> None:
    """The run is that of the other teacher alone."""
    silent = {NAMES[0]: 0.0}
    both = config([tiny_cache, finer_cache], tmp_path / "both", steps=2, loss={"teacher_weights": silent})
    train(runtime, both)
    train(runtime, config([finer_cache], tmp_path / "one", steps=2, loss={}))
    assert rows(tmp_path / "both") == rows(tmp_path / "one")
    cards = [yaml.safe_load((tmp_path / name / "backbone.yaml").read_text()) for name in ("both", "one")]
    assert [card["teacher"] for card in cards] == [NAMES[1]] * 2
    assert len(cards[0].pop("teacher_fingerprint")) == 1 and cards[0] == cards[1]


def test_heads_of_a_teacher_that_was_not_there_start_anew(run: Path) -> None:
    lines: list[str] = []
    student = load_student("vit_tiny_patch16_224", (32, 48), (2, 3), args=dict(TINY))
    spaces = [TeacherSpace(48, (2, 3)), TeacherSpace(24, (4, 6))]
    objective = Distiller(student, *spaces, loss=LossConfig(mask_weight=1.0))
    teachers = {NAMES[0]: Conditioning(), "another": Conditioning()}
    assert heads.resume(objective, run, teachers, lines.append)
    (line,) = lines
    assert line.startswith(f"the heads of {run} for another do not fit, new ones start: they belong to")


def test_mistakes_name_what_to_change(
    runtime: Runtime, tiny_cache: Path, finer_cache: Path, tmp_path: Path
) -> None:
    both = [tiny_cache, finer_cache]
    with pytest.raises(ConfigError, match="names 'vit_smal'") as near:
        train(runtime, config(both, tmp_path, loss={"teacher_weights": {"vit_smal": 1.0}}))
    assert near.value.hint == f"did you mean '{NAMES[1]}'?"
    with pytest.raises(ConfigError, match="give 0 or more"):
        config(both, tmp_path, loss={"teacher_weights": {NAMES[1]: -1.0}})
    with pytest.raises(ConfigError, match="is 0 for every teacher"):
        train(runtime, config(both, tmp_path, loss={"teacher_weights": dict.fromkeys(NAMES, 0.0)}))
    with pytest.raises(ConfigError, match="learns from one teacher"):
        train(runtime, config(both, tmp_path, objective="g2sd", loss={}))
    with pytest.raises(ConfigError, match="teaches alone"):
        train(runtime, config([tiny_cache], tmp_path, loss={"teacher_drop": 0.5}))
