"""A recipe, and the options of ``gkd-scale benchmark``. Light: nothing here imports torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gkd_scale import config, ranges
from gkd_scale.config import inline, option
from gkd_scale.errors import ConfigError, nearest
from gkd_scale.models.config import TeacherConfig
from gkd_scale.segment.heads.registry import HEADS, check_head
from gkd_scale.segment.methods.registry import METHODS as SINGLE_STAGE
from gkd_scale.timm_arguments import TIMM_ARGUMENTS

PUBLISHED = ("--loss.mask-weight", "1", "--loss.cls-weight", "1", "--loss.ladder-weight", "0")
"""The flags for stage 1's losses as the paper weighs them."""


class GkdForm(NamedTuple):
    """A form of GKD: its ``title`` in the table and its ``flags`` of stage 1.

    ``passes``: how often an image goes through the student in stage 1, forward and backward.
    """

    title: str
    passes: float
    flags: tuple[str, ...] = ()


GKD = {
    "gkd": GkdForm("GKD", 1.0),
    "gkd-mse": GkdForm("GKD as published, MSE", 1.5, (*PUBLISHED, "--qsd.form", "mse")),
    "gkd-qsd": GkdForm("GKD as published, QSD", 1.5, (*PUBLISHED, "--qsd.form", "qsd")),
}
"""``gkd`` is what stage 1 does by default. ``gkd-qsd`` has the losses of the paper. ``gkd-mse`` is the
paper's ablation of it, plain MSE in place of QSD. In both, half of a batch goes through again, masked."""

TEACHER = "teacher"
"""The table's row of the frozen teacher with a head."""


def methods() -> tuple[str, ...]:
    """The rows that a table can have, in their order."""
    return (TEACHER, *SINGLE_STAGE, *GKD)


def title(method: str) -> str:
    """A row's name in the table."""
    if method == TEACHER:
        return "teacher, frozen"
    return GKD[method].title if method in GKD else SINGLE_STAGE[method].title


@dataclass
class BenchmarkConfig:
    """Run a recipe: methods x seeds, tested on every domain, as one table."""

    recipe: Path = option(help="YAML file, as those in benchmarks/recipes", positional=True)
    out: Path | None = option(None, "folder of caches, runs and results (default runs/RECIPE)")
    data: Path = option(Path("data"), "what {data} in the recipe stands for", metavar="FOLDER")
    only: list[str] = option(
        [], "METHOD or METHOD/SEED, with * and ?, repeatable: run these cells alone", metavar="CELL"
    )
    passes: int | None = option(
        None, "student passes a method, instead of the recipe's budget", within=ranges.COUNT
    )
    dry_run: bool = option(False, "print the budget and the commands, run nothing")
    launchers: Path = option(Path("launchers"), "folder of stage1.py and stage2.py")
    ds_config: str = option("zero2.json", "DeepSpeed JSON")


@dataclass
class RecipeTeacherConfig(TeacherConfig):
    """The foundation model. A recipe has to name it."""

    name: str = option()


@dataclass
class TeacherPart:
    """The foundation model, and how its features are conditioned. ``patch`` is for the source image size."""

    model: RecipeTeacherConfig = inline(RecipeTeacherConfig, patch_size="patch", patch_resize=None)
    norm: str = "whiten"


@dataclass
class StudentPart:
    """The student; ``weights`` None: from scratch."""

    name: str
    weights: str | None = None
    args: dict[str, Any] = option({}, keys=TIMM_ARGUMENTS)


@dataclass
class Budget:
    """What every method may spend: ``passes`` of the student, forward and backward, counted in images.

    ``proxy`` and ``source`` are the shares of GKD's two phases of stage 1, the rest is its head's.
    ``generic`` is the share of G2SD's first stage.
    """

    passes: int = option(within=ranges.COUNT)
    proxy: float = option(0.45, within=ranges.PART)
    source: float = option(0.45, within=ranges.PART)
    generic: float = option(0.5, within=ranges.PART)
    stage1_batch: int = option(32, within=ranges.SIZE)
    batch: int = option(16, within=ranges.SIZE)

    def __post_init__(self) -> None:
        if self.proxy + self.source >= 1:
            raise ConfigError(
                f"'budget.proxy' {self.proxy:g} and 'budget.source' {self.source:g}: no passes are left "
                "for the head",
                "give two shares whose sum is below 1",
            )


@dataclass
class Recipe:
    """One benchmark. Paths may hold ``{data}`` and ``{out}``; ``flags`` by these names join commands:

    ``cache``, ``stage1``, ``1a`` and ``1b`` (GKD's phases of it), ``stage2`` (every stage 2), ``single``
    (those with ``--method``), ``head`` (those on a frozen encoder), ``evaluate``, and the methods' own.
    """

    title: str
    teacher: TeacherPart
    student: StudentPart
    proxy_images: str
    source_images: str
    train: list[str]
    val: list[str]
    domains: dict[str, str]
    image_size: str
    budget: Budget
    proxy_size: str | None = None
    views: int = option(4, within=ranges.SIZE)
    head: str = option("mask2former", choices=HEADS)
    head_args: dict[str, Any] = field(default_factory=dict)
    teacher_head: bool = False
    methods: list[str] = field(default_factory=lambda: list(methods()))
    seeds: list[int] = option([0, 1, 2], within=ranges.SEED)
    flags: dict[str, str] = field(default_factory=dict)
    prepare: list[str] = field(default_factory=list)
    published: str | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in methods():
                raise ConfigError(
                    f"the recipe names a method '{name}'",
                    nearest(name, methods()) or f"methods: {', '.join(methods())}",
                )
        names = ("cache", "stage1", "1a", "1b", "stage2", "single", "head", "evaluate", *methods())
        for name in self.flags:
            if name not in names:
                raise ConfigError(
                    f"the recipe has flags for '{name}'", nearest(name, names) or f"known: {', '.join(names)}"
                )
        check_head(self.head, self.head_args)
        for name in ("methods", "seeds", "domains", "train", "val"):
            if not getattr(self, name):
                raise ConfigError(f"the recipe's '{name}' is empty", "name at least one")


def read_recipe(path: Path, data: Path, out: Path) -> Recipe:
    """The recipe in a YAML file, with ``{data}`` and ``{out}`` filled in; ConfigError if it is wrong."""

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{data}", str(data)).replace("{out}", str(out))
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        return value

    def line(text: Any) -> Any:
        """A line as a shell takes it: paths may hold spaces and quotes."""
        try:
            return shlex.join(map(fill, shlex.split(text))) if isinstance(text, str) else text
        except ValueError as error:
            raise ConfigError(f"{path}: {text!r} is no command line: {error}", "close the quote") from None

    values = config.read_yaml(path)
    lines: dict[str, Any] = {}
    if isinstance(prepare := values.pop("prepare", None), list):
        lines["prepare"] = [line(command) for command in prepare]
    elif prepare is not None:
        lines["prepare"] = line(prepare)
    if isinstance(flags := values.pop("flags", None), dict):
        lines["flags"] = {key: line(command) for key, command in flags.items()}
    elif flags is not None:
        lines["flags"] = flags
    return config.build(Recipe, {**fill(values), **lines}, str(path))
