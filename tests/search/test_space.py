from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale.config import to_dict
from gkd_scale.errors import ConfigError
from gkd_scale.search import space as spaces
from gkd_scale.search.space import Dimension

BASE: dict[str, Any] = {"steps": 10}


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_a_file_says_what_is_fixed_and_what_is_searched(tmp_path: Path) -> None:
    text = "optim:\n  lr: loguniform(1e-4, 5e-3)\nqsd.init: choice(published, zero-query)\nglobal_batch: 16\n"
    space = spaces.read(write(tmp_path, text), BASE)
    assert space.fixed == {"global_batch": 16}
    assert space.searched == {
        "optim.lr": Dimension("loguniform", (1e-4, 5e-3)),
        "qsd.init": Dimension("choice", ("published", "zero-query")),
    }
    cfg = space.configure(BASE, {"optim.lr": 1e-3, "qsd.init": "zero-query"})
    assert (cfg.optim.lr, cfg.qsd.init, cfg.run.global_batch, cfg.run.steps) == (1e-3, "zero-query", 16, 10)


def test_students_and_views_can_be_searched(tmp_path: Path) -> None:
    text = "student: choice(demo_student, vit_tiny_patch16_224)\nviews: choice(1, 2)\n"
    space = spaces.read(write(tmp_path, text), BASE)
    assert space.searched["student"].values == ("demo_student", "vit_tiny_patch16_224")
    cfg = space.configure(BASE, {"student": "vit_tiny_patch16_224", "views": 2})
    assert (cfg.student.names, cfg.source.views) == (["vit_tiny_patch16_224"], 2)


@pytest.mark.parametrize("name", sorted(path.name for path in spaces.SPACES.glob("*.yaml")))
def test_every_bundled_space_can_be_read(name: str) -> None:
    assert spaces.read(name, BASE).searched


@given(st.floats(1e-6, 1e3), st.floats(1.01, 10))
def test_what_a_dimension_writes_it_reads(low: float, factor: float) -> None:
    for kind in ("uniform", "loguniform"):
        dimension = Dimension(kind, (low, low * factor))
        assert spaces.parse(dimension.text(), "here") == dimension


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss.mask_wieght: uniform(0, 1)", "did you mean 'mask_weight'"),
        ("loss.mask_weight: unifrom(0, 1)", "did you mean 'uniform'"),
        ("loss.mask_weight: loguniform(0, 1)", "0 < low < high"),
        ("loss.mask_weight: uniform(2, 1)", "low < high"),
        ("loss.mask_weight: uniform(1)", "takes two numbers"),
        ("global_batch: randint(0.5, 4)", "takes two whole numbers"),
        ("mask.ratio: uniform(0.5, 2)", "'mask.ratio' is 2"),
        ("qsd.init: choice(published, zero-qurey)", "did you mean 'zero-query'"),
        ("optim.lr: choice(1e-3, fast)", "'optim.lr' is 'fast'"),
        ("steps: choice(10, 20)", "which the search decides"),
        ("global_batch: 16", "searches nothing"),
        ("optim.lr: choice()", "has no choice"),
    ],
)
def test_a_mistake_is_one_error_that_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        spaces.read(path, BASE)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_space_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo"):
        spaces.find("demmo.yaml")


def test_defaults_are_those_inside_the_space(tmp_path: Path) -> None:
    text = (
        "optim.lr: loguniform(1e-4, 1e-2)\nmask.ratio: uniform(0.6, 0.9)\nqsd.scale: choice(sqrt, published)"
    )
    space = spaces.read(write(tmp_path, text), BASE)
    assert spaces.defaults(space, BASE, lambda _, batch: batch * 1e-5) == {
        "optim.lr": pytest.approx(32e-5),
        "qsd.scale": "published",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop_path: uniform(0, 2)", "'drop_path' is 2"),
        ("drop_path: uniform(0, .nan)", "no range"),
        ("drop_path: uniform(0, .inf)", "'drop_path' is inf"),
        ("optim.warmup: uniform(0, 5)", "not their number"),
        ("optim.lr: loguniform(1e-4, 100)", "'optim.lr' is 100"),
        ("student_args.depth: uniform(2, 4)", "randint(2, 4)"),
        ("student_args.drop_path_rate: choice(0.1, 1.5)", "'student_args.drop_path_rate' is 1.5"),
        ("views: uniform(1, 3)", "write randint(1, 3)"),
        ("global_batch: loguniform(16, 64)", "write lograndint(16, 64)"),
        ("grad_checkpointing: uniform(0, 1)", "'grad_checkpointing'"),
        ("optim.betas: choice([0.9, 1.5], [0.9, 0.95])", "'optim.betas' is 1.5"),
        ("optim.lr: tune.loguniform(1e-4, 1e-2)", "write loguniform(1e-4, 1e-2), without 'tune.'"),
        ("views: ray.tune.randint(1, 4)", "both included, without 'ray.tune.'"),
        ("optim.lr: trial.suggest_float(lr, 1e-4, 1e-2)", "loguniform"),
        ("optim.lr: quniform(1e-4, 1e-2)", "did you mean 'uniform'"),
        ("optim.lr: {min: 1e-4, max: 1e-2}", "loguniform"),
        ("optim.lr: [1e-4, 1e-2]\nviews: choice(1, 2)", "loguniform"),
        ("global_batch: choice([16, 32])", "without brackets"),
        ("optim.lr: loguniform(1e-4, 1e-2)\noptim:\n  lr: choice(1e-3, 1e-4)", "'optim.lr' is there twice"),
        ("views: choice(1, 2)\nviews: choice(1, 3)", "'views' is there twice, in lines 1 and 2"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_search(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        spaces.read(path, BASE)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_what_population_based_training_may_change() -> None:
    assert spaces.may_change("optim.lr") and spaces.may_change("drop_path")
    assert not spaces.may_change("optim.name") and not spaces.may_change("student")


def test_what_may_change_when_a_search_goes_on() -> None:
    from gkd_scale.search.config import SearchConfig

    whole, rest = to_dict(SearchConfig()), to_dict(SearchConfig(), volatile=False)
    assert whole.keys() - rest.keys() == {
        *("out", "resume", "final", "final_steps", "head", "head_steps", "test"),
        *("dashboard", "address", "cpus", "max_concurrent", "mirror", "mirror_gb"),
    }
