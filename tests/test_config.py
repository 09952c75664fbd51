"""Configuration: YAML, flags and defaults, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd_scale import config, ranges
from gkd_scale.config import inline, option, section
from gkd_scale.errors import ConfigError


@dataclass
class Inner:
    """inner: a group"""

    rate: float = option(0.1, "a rate", flag="--rate")
    pair: tuple[float, float] = option((0.0, 1.0), "two numbers")


@dataclass
class Options:
    """A command."""

    path: Path = option(help="a path")
    count: int = option(3, "a count")
    many: list[str] = option([], "repeatable")
    args: dict[str, object] = option({}, "key=value")
    loud: bool = option(False, "a switch")
    kind: str = option("a", "a choice", choices=("a", "b"))
    inner: Inner = section(Inner)


def parse(*argv: str) -> Options:
    return config.parse(Options, argv, prog="test", description="")


def test_flags_over_yaml_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("path: from-yaml\ncount: 7\ninner:\n  rate: 1e-4\n  pair: [2, 3]\n")
    got = parse("--config", str(file), "--count", "8", "--many", "x", "--many", "y", "--loud")
    assert got == Options(Path("from-yaml"), 8, ["x", "y"], {}, True, "a", Inner(1e-4, (2.0, 3.0)))


def test_nested_flags_aliases_and_key_values() -> None:
    got = parse(
        "--path", "p", "--rate", "5", "--inner.pair", "1", "2",
        "--args", "depth=4", "pad=same", "n=[1, 2]", "w=2e-6",
    )  # fmt: skip
    assert got.inner == Inner(5.0, (1.0, 2.0))
    assert got.args == {"depth": 4, "pad": "same", "n": [1, 2], "w": 2e-6}
    assert parse("--path", "p", "--inner.rate", "5").inner.rate == 5.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--path", "p", "--cuont", "4"], "did you mean '--count'?"),
        (["--path", "p", "--count", "four"], "'count' is 'four'"),
        (["--path", "p", "--count", "1.5"], "'count' is '1.5'"),
        (["--count", "4"], "give --path"),
        (["--path", "p", "--kind", "c"], "invalid choice"),
        (["--path", "p", "--args", "depth"], "KEY=VALUE"),
        (["--path", "p", "stray"], "unknown argument 'stray'"),
        (["--path", "p", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_clear_error(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(*argv)
    assert message in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: p\nconut: 4", "unknown key 'conut'\n  → did you mean 'count'?"),
        ("path: p\ninner: {ratee: 4}", "unknown key 'inner.ratee'\n  → did you mean 'rate'?"),
        ("path: p\ncount: [1]", "'count'"),
        ("- a list", "not a mapping"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_yaml_mistakes_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        parse("--config", str(file))
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_help_shows_flags_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        config.parse(Options, ["--help"], prog="test", description="what it does", examples="  test --path p")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for part in ("what it does", "--inner.rate", "--rate", "(default: 3)", "test --path p"):
        assert part in text


@given(
    st.builds(
        Options,
        path=st.text("abc/", min_size=1).map(Path),
        count=st.integers(-100, 100),
        many=st.lists(st.text("xyz")),
        loud=st.booleans(),
        inner=st.builds(Inner, rate=st.floats(1e-9, 1e9)),
    )
)
def test_written_yaml_reads_back_the_same(options: Options) -> None:
    import yaml

    assert config.build(Options, yaml.safe_load(config.to_yaml(options))) == options


def test_a_config_inherits_from_one_of_another_module() -> None:
    """Annotations are strings; each is looked up in the module that wrote it."""
    source = """
from __future__ import annotations
from dataclasses import dataclass
import tests.test_config as above

@dataclass
class Extended(above.Options):
    more: int = 0
"""
    module = types.ModuleType("extended")
    sys.modules["extended"] = module
    try:
        exec(compile(source, "extended", "exec"), module.__dict__)
        cfg: Any = config.build(module.Extended, {"path": "p", "inner": {"rate": 2}, "more": "3"})
    finally:
        del sys.modules["extended"]
    assert (cfg.path, cfg.inner.rate, cfg.more) == (Path("p"), 2, 3)


def test_dotted_overrides_merge_into_groups() -> None:
    base = {"inner": {"rate": 1, "pair": [0, 1]}, "count": 2}
    assert config.merge(base, config.from_dotted({"inner.rate": 5})) == {
        "inner": {"rate": 5, "pair": [0, 1]},
        "count": 2,
    }


def test_one_value_where_a_list_is_expected_is_a_list_of_one() -> None:
    @dataclass
    class Lists:
        names: list[str] = config.option(["a", "b"], "names")

    assert config.build(Lists, {"names": "c"}).names == ["c"]
    assert config.build(Lists, {"names": ["c", "d"]}).names == ["c", "d"]
    assert config.build(Lists, {}).names == ["a", "b"]


def test_one_value_where_any_number_is_expected_is_one_of_them() -> None:
    @dataclass
    class Levels:
        layers: tuple[int, ...] | None = config.option(None, "levels")

    def levels(*argv: str) -> Levels:
        return config.parse(Levels, argv, prog="levels", description="")

    assert config.build(Levels, {"layers": 9}).layers == (9,)
    assert config.build(Levels, {"layers": [7, 9]}).layers == levels("--layers", "7", "9").layers == (7, 9)
    assert config.build(Levels, {"layers": None}).layers is None is levels().layers


def test_an_error_names_who_gave_the_value(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("path: p\ncount: 4\n")
    with pytest.raises(ConfigError, match=r"^test: 'count' is 'four'"):
        parse("--config", str(file), "--count", "four")
    file.write_text("path: p\ncount: four\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: 'count' is 'four'"):
        parse("--config", str(file), "--loud")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--args", "x=nan"], "'args.x' is the text 'nan'"),
        (["--args", "x=.inf"], "'args.x' is inf"),
        (["--args", "x=off"], "write true or false"),
        (["--args", "x={y: [no]}"], "'args.x.y' is the text 'no'"),
        (["--args", "x=None"], "write null"),
        (["--args", "x=1", "--args", "x=2"], "gives 'x' twice"),
        (["--args", "x=[1"], "for example depth=4"),
        (["--rate", "nan"], "'inner.rate' is nan: it must be a number, and finite"),
    ],
)
def test_arguments_and_numbers_that_mean_nothing(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse("--path", "p", *argv)
    assert message in str(error.value)


# ------------------------------------------------------------------------------ inline sections


@dataclass
class Model:
    """model: what runs"""

    name: str = option("tiny", "its name")
    depth: int | None = option(None, "its depth", within=ranges.COUNT)
    mean: tuple[float, float] | None = option(None, "two numbers")
    note: str = option("", "what may change", volatile=True)


@dataclass
class Net(Model):
    """model: what runs"""

    name: str = option(help="its name")


@dataclass
class Group:
    """group: a section with a model inline"""

    rate: float = option(0.1, "a rate", within=ranges.WEIGHT, volatile=True)
    model: Model = inline(Model, short=True, name="net", depth="net_depth", mean="net_mean", note=None)


@dataclass
class Program:
    """A command."""

    out: Path = option(Path("out"), "a path", volatile=True)
    model: Net = inline(Net, name="model", depth="model_depth")
    group: Group = section(Group)


def program(*argv: str) -> Program:
    return config.parse(Program, argv, prog="test", description="")


def test_an_inline_section_has_its_flags_and_keys_at_the_level_above(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: big\nmean: [1, 2]\ngroup: {net: small, net_depth: 2}\n")
    got = program("--config", str(file), "--model-depth", "3", "--group.rate", "2", "--net-mean", "0", "1")
    small = Model("small", 2, (0.0, 1.0))
    assert got == Program(Path("out"), Net("big", 3, (1.0, 2.0)), Group(2.0, small))
    assert got == program(
        "--config", str(file), *["--model-depth", "3", "--group.rate", "2", "--group.net-mean", "0", "1"]
    )
    assert list(config.to_dict(got)) == ["out", "model", "model_depth", "mean", "note", "group"]
    assert list(config.to_dict(got)["group"]) == ["rate", "net", "net_depth", "net_mean"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "test: 'model' is required (give --model)"),
        (["--model", "m", "--model-depht", "1"], "did you mean '--model-depth'?"),
        (["--model", "m", "--model-depth", "x"], "test: 'model_depth' is 'x'"),
        (["--model", "m", "--model-depth", "0"], "test: 'model_depth' is 0"),
        (["--model", "m", "--net-depth", "0.5"], "test: 'group.net_depth' is 0.5"),
        (["--model", "m", "--net-depth", "None"], "test: 'group.net_depth' is 'None'"),
        (["--model", "m", "--name", "n"], "unknown flag '--name'"),
        (["--model", "m", "--group.note", "n"], "unknown flag '--group.note'"),
    ],
)
def test_mistakes_in_an_inline_section_name_the_option(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        program(*argv)
    assert message in str(error.value)


def test_help_has_a_group_for_an_inline_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program("--help")
    text = capsys.readouterr().out
    head, _, model = text[text.index("\n\n") :].partition("model: what runs")
    model, _, group = model.partition("group: a section")
    assert "--out" in head and "--model-depth" not in head
    assert "--model-depth" in model and "--net-depth" not in model
    assert "--group.net-depth N, --net-depth N" in group


MODELS = {
    "depth": st.none() | st.integers(1, 9),
    "mean": st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
    "note": st.text("xyz"),
}
PROGRAMS = st.builds(
    Program,
    out=st.text("abc/", min_size=1).map(Path),
    model=st.builds(Net, name=st.text("xyz"), **MODELS),
    group=st.builds(
        Group,
        rate=st.floats(0, 9),
        model=st.builds(Model, name=st.text("xyz"), **{**MODELS, "note": st.just("")}),
    ),
)


@given(PROGRAMS)
def test_inline_sections_are_written_and_read_back_the_same(options: Program) -> None:
    import yaml

    assert config.build(Program, yaml.safe_load(config.to_yaml(options))) == options


@given(PROGRAMS, PROGRAMS)
def test_each_option_can_be_changed_by_its_key(one: Program, other: Program) -> None:
    values = {key: option.of(other) for key, option in config.options(Program).items()}
    assert config.copy_with(one, **values) == other
    assert config.copy_with(one, mean=None) == dataclasses.replace(
        one, model=dataclasses.replace(one.model, mean=None)
    )


@given(PROGRAMS)
def test_what_may_change_is_left_out_of_what_must_not(options: Program) -> None:
    identity = config.to_dict(options, volatile=False)
    assert list(identity) == ["model", "model_depth", "mean", "group"]
    assert list(identity["group"]) == ["net", "net_depth", "net_mean"]
    whole = config.to_dict(options)
    assert identity == {**{key: whole[key] for key in identity}, "group": identity["group"]}


def test_two_options_of_one_key_are_a_mistake_of_ours() -> None:
    @dataclass
    class Twice:
        name: str = option("a", "a name")
        model: Model = inline(Model)

    with pytest.raises(AssertionError, match="Twice has two options 'name'"):
        config.options(Twice)


def test_an_error_of_a_whole_config_names_the_file_that_gives_all_of_it(tmp_path: Path) -> None:
    @dataclass
    class Span:
        low: int = option(0, "the first", within=ranges.NUMBER)
        high: int = option(9, "the last", within=ranges.NUMBER)

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ConfigError(f"'low' is {self.low}, above 'high'", "give a smaller one")

    def parse(*argv: str) -> Span:
        return config.parse(Span, argv, prog="test", description="")

    file = tmp_path / "c.yaml"
    file.write_text("low: 10\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: 'low' is 10, above 'high'\n  → give a smaller one"):
        parse("--config", str(file))
    with pytest.raises(ConfigError, match=r"^'low' is 10, above 'high'"):
        parse("--config", str(file), "--high", "5")
    with pytest.raises(ConfigError, match=r"^recipe\.yaml: 'low' is 10"):
        config.build(Span, {"low": 10}, "recipe.yaml")
