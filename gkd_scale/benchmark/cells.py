"""A recipe as commands, and how many steps of each the budget pays for.

The budget is counted in student passes: an image once through the student, forward and backward. The
published GKD takes 1.5 passes an image in stage 1: half of every batch goes through once more, masked. The
row of a method says how many it takes. A frozen student under a head only runs forward, which counts as a
third. What the teacher, a decoder or a head computes is not counted.
"""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gkd_scale.benchmark.config import GKD, TEACHER, BenchmarkConfig, Recipe
from gkd_scale.cache.manifest import MANIFEST
from gkd_scale.commands import flag
from gkd_scale.distill.objectives.registry import OBJECTIVES
from gkd_scale.errors import ConfigError
from gkd_scale.segment.methods.registry import METHODS
from gkd_scale.subprocesses import Step, data_flags, launch, repeat

FROZEN_PASSES = 1 / 3


@dataclass(frozen=True)
class Work:
    """A step of the benchmark. ``proof``: the file it writes last; ``kind`` and ``amount``: how long.

    ``needs`` names the steps whose results it reads, which come before it. ``folder`` is all that it writes
    and would go on from; None if it begins anew each time.
    """

    name: str
    step: Step
    proof: Path
    kind: str
    amount: float = 1.0
    needs: tuple[str, ...] = ()
    folder: Path | None = None


def cells(recipe: Recipe, only: Sequence[str]) -> list[tuple[str, int]]:
    """(method, seed) of the table that ``only`` selects, seed by seed; ConfigError for none."""
    all_cells = [(method, seed) for seed in recipe.seeds for method in recipe.methods]
    selection = [
        (method, seed)
        for method, seed in all_cells
        if not only
        or any(fnmatch.fnmatch(name, pattern) for pattern in only for name in (method, f"{method}/{seed}"))
    ]
    if not selection:
        names = ", ".join(f"{method}/{seed}" for method, seed in all_cells)
        raise ConfigError(f"--only {' '.join(only)} selects no cell", f"cells: {names}")
    return selection


def steps_of(method: str, recipe: Recipe) -> dict[str, int]:
    """Optimizer steps by phase that the budget pays for."""
    budget = recipe.budget

    def steps(share: float, passes: float, batch: int) -> int:
        return max(1, round(share * budget.passes / (passes * batch)))

    head = {"head": steps(1 - budget.proxy - budget.source, FROZEN_PASSES, budget.batch)}
    if method == TEACHER:
        return head
    if method in GKD:
        stage1 = {
            phase: steps(share, GKD[method].passes, budget.stage1_batch)
            for phase, share in (("1a", budget.proxy), ("1b", budget.source))
        }
        return {**stage1, **head}
    row = METHODS[method]
    if row.generic is not None:
        return {
            "generic": steps(budget.generic, OBJECTIVES[row.generic].passes, budget.stage1_batch),
            "specific": steps(1 - budget.generic, row.passes, budget.batch),
        }
    return {"single": steps(1, row.passes, budget.batch)}


def evaluation(out: Path, method: str, seed: int) -> Path:
    """The file with a cell's numbers."""
    return out / method / f"seed{seed}" / "head" / "evaluation.json"


class Commands:
    """The commands of a recipe, in order, each once."""

    def __init__(self, cfg: BenchmarkConfig, recipe: Recipe, out: Path) -> None:
        self._cfg, self._recipe, self._out = cfg, recipe, out

    def works(self, selection: Sequence[tuple[str, int]]) -> list[Work]:
        """What the cells of ``selection`` need, in the order in which they need each other."""
        works: dict[str, Work] = {}
        for number, line in enumerate(self._recipe.prepare, 1):
            name, step = f"prepare-{number}", Step(f"prepare {number}", shlex.split(line))
            works[name] = Work(name, step, self._out / "done" / f"{name}.json", "prepare")
        before = tuple(works)
        for method, seed in selection:
            for work in self._cell(method, seed):
                works.setdefault(work.name, replace(work, needs=(*before, *work.needs)))
        return list(works.values())

    def _cell(self, method: str, seed: int) -> Iterator[Work]:
        if method == TEACHER:
            yield self._teacher_head(seed)
        elif method in GKD:
            yield from self._gkd(method, seed)
        else:
            yield from self._single_stage(method, seed)
        yield self._evaluate(method, seed)

    def _gkd(self, method: str, seed: int) -> Iterator[Work]:
        steps, folder = steps_of(method, self._recipe), self._out / method / f"seed{seed}"
        yield self._cache("proxy")
        yield self._cache("source")
        form = [*GKD[method].flags, "--teacher-norm", self._recipe.teacher.norm]
        weights = self._recipe.student.weights
        yield self._stage1(method, seed, "1a", "proxy", weights, steps["1a"], form)
        weights = str(folder / "1a")
        yield self._stage1(method, seed, "1b", "source", weights, steps["1b"], form, f"{method}-{seed}-1a")
        flags = ["--backbone", str(folder / "1b"), *self._student()]
        yield self._stage2(method, seed, steps["head"], flags, f"{method}-{seed}-1b")

    def _single_stage(self, method: str, seed: int) -> Iterator[Work]:
        """Stage 2 with a method's loss, after the steps whose results its row asks for."""
        steps, weights = steps_of(method, self._recipe), self._recipe.student.weights
        needs = []
        if self._uses_logits(method):
            yield self._teacher_head(seed)
            needs.append(f"{TEACHER}-{seed}-head")
        if generic := METHODS[method].generic:
            yield self._cache("proxy")
            form = ["--objective", generic]
            yield self._stage1(method, seed, "generic", "proxy", weights, steps["generic"], form)
            weights = str(self._out / method / f"seed{seed}" / "generic")
            needs.insert(0, f"{method}-{seed}-generic")
        flags = [*flag("--backbone", weights), *self._student(), *self._method_flags(method, seed)]
        yield self._stage2(method, seed, steps["specific" if generic else "single"], flags, *needs)

    def _uses_logits(self, method: str) -> bool:
        """Whether the method gets a head of the teacher: it needs one, or can use the recipe's."""
        logits = METHODS[method].logits
        return logits == "needed" or (logits == "used" and self._recipe.teacher_head)

    def _cache(self, kind: str) -> Work:
        recipe, teacher = self._recipe, self._recipe.teacher.model
        out = self._out / "caches" / kind
        images, size, patch = {
            "proxy": (recipe.proxy_images, recipe.proxy_size or recipe.image_size, None),
            "source": (recipe.source_images, recipe.image_size, teacher.patch_size),
        }[kind]
        command = ["gkd-scale", "cache-teacher", "--images", images, *flag("--teacher", teacher.name)]
        command += _teacher_flags(recipe, ("mean", "std"))
        command += [*flag("--patch-size", patch), "--image-size", size, "--views", str(recipe.views)]
        command += [*self._flags("cache"), "--out", str(out)]
        step = Step(f"cache the {kind} images", command)
        return Work(f"cache-{kind}", step, out / MANIFEST, "cache", folder=out)

    def _stage1(
        self,
        method: str,
        seed: int,
        phase: str,
        cache: str,
        weights: str | None,
        steps: int,
        extra: Sequence[str],
        *needs: str,
    ) -> Work:
        out = self._out / method / f"seed{seed}" / phase
        command = [
            *launch(self._cfg.launchers / "stage1.py", self._cfg.ds_config),
            "--cache",
            str(self._out / "caches" / cache),
        ]
        command += [*self._student(), *flag("--student-weights", weights), *extra]
        command += ["--global-batch", str(self._recipe.budget.stage1_batch), "--steps", str(steps)]
        command += [*self._flags("stage1", phase, method), "--seed", str(seed), "--out", str(out)]
        step = Step(f"{method}, seed {seed}: stage {phase}", command)
        needs = (f"cache-{cache}", *needs)
        return Work(f"{method}-{seed}-{phase}", step, out / "run.json", f"stage1 {method}", steps, needs, out)

    def _stage2(self, method: str, seed: int, steps: int, extra: Sequence[str], *needs: str) -> Work:
        recipe, out = self._recipe, self._out / method / f"seed{seed}" / "head"
        command = launch(self._cfg.launchers / "stage2.py", self._cfg.ds_config)
        command += [*repeat("--train", recipe.train), *repeat("--val", recipe.val)]
        command += ["--image-size", recipe.image_size, "--head", recipe.head]
        command += flag("--head-args", recipe.head_args)
        command += ["--global-batch", str(recipe.budget.batch), "--steps", str(steps), *extra]
        kind = "single" if "--method" in extra else "head"
        command += [*self._flags("stage2", kind, method), "--seed", str(seed), "--out", str(out)]
        step = Step(f"{method}, seed {seed}: stage 2", command)
        return Work(f"{method}-{seed}-head", step, out / "run.json", f"stage2 {method}", steps, needs, out)

    def _teacher_head(self, seed: int) -> Work:
        teacher = self._recipe.teacher.model
        patch = {} if teacher.patch_size is None else {"patch_size": teacher.patch_size}
        flags = ["--backbone", str(teacher.weights or "pretrained"), "--student", teacher.name]
        flags += flag("--student-args", {**teacher.args, **patch})
        flags += [*flag("--mean", teacher.mean), *flag("--std", teacher.std)]
        return self._stage2(TEACHER, seed, steps_of(TEACHER, self._recipe)["head"], flags)

    def _method_flags(self, method: str, seed: int) -> list[str]:
        """The flags of a single-stage method and of the teacher it needs."""
        flags = ["--method", method]
        if METHODS[method].features:
            teacher = self._recipe.teacher
            flags += flag("--teacher", teacher.model.name)
            flags += _teacher_flags(self._recipe, ("teacher-mean", "teacher-std"))
            flags += [*flag("--teacher-patch", teacher.model.patch_size), "--teacher-norm", teacher.norm]
        if self._uses_logits(method):
            flags += ["--teacher-head", str(self._out / TEACHER / f"seed{seed}" / "head")]
        return flags

    def _evaluate(self, method: str, seed: int) -> Work:
        path = evaluation(self._out, method, seed)
        command = ["gkd-scale", "evaluate", str(path.parent)]
        command += [*data_flags(self._recipe.domains), *self._flags("evaluate")]
        step = Step(f"{method}, seed {seed}: evaluate", command)
        return Work(f"{method}-{seed}-evaluate", step, path, "evaluate", needs=(f"{method}-{seed}-head",))

    def _student(self) -> list[str]:
        student = self._recipe.student
        return ["--student", student.name, *flag("--student-args", student.args)]

    def _flags(self, *names: str) -> list[str]:
        return [part for name in names for part in shlex.split(self._recipe.flags.get(name, ""))]


def _teacher_flags(recipe: Recipe, statistics: tuple[str, str]) -> list[str]:
    teacher = recipe.teacher.model
    flags = [*flag("--teacher-weights", teacher.weights), *flag("--teacher-args", teacher.args)]
    flags += flag("--teacher-layer", teacher.layer)
    flags += flag("--teacher-dtype", None if teacher.dtype == "float32" else teacher.dtype)
    for name, values in zip(statistics, (teacher.mean, teacher.std), strict=True):
        flags += flag(f"--{name}", values)
    return flags
