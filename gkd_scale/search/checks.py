"""Refuse, before Ray starts, what cannot work: one clear error instead of failed trials.

:func:`check` turns the options into a :class:`SearchPlan`, which is all that trials need: absolute paths and
plain values, so that it means the same on every node.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gkd_scale.cache.cluster import refuse_silent
from gkd_scale.cache.config import MirrorConfig
from gkd_scale.cache.joined import open_joined
from gkd_scale.cache.location import is_url
from gkd_scale.demo import defaults
from gkd_scale.distill import stage1
from gkd_scale.distill.config import Stage1Config
from gkd_scale.engine import ds_config
from gkd_scale.errors import ConfigError, ModelError
from gkd_scale.models import backbone
from gkd_scale.models import spec as models
from gkd_scale.search import space as spaces
from gkd_scale.search.config import SearchConfig, TrialConfig
from gkd_scale.segment.config import DEFAULT_TRAIN, DEFAULT_VAL
from gkd_scale.segment.datasets import registry

LAUNCHERS = Path(__file__).resolve().parents[2] / "launchers"
TEST_PREFIX = "unseen_"
"""Folders whose names begin so are for testing only, in the embedded data and by convention."""


@dataclass(frozen=True)
class SearchPlan:
    """A checked search. ``base`` are stage-1 options of every trial; ``cpu`` and ``gpu`` are a rank's.

    ``train`` and ``val`` are ADAPTER:PATH by name; ``default`` is stage 1's own setting inside the space.
    """

    space: spaces.Space
    base: dict[str, Any]
    default: dict[str, Any]
    out: Path
    caches: tuple[str, ...]
    mirror: MirrorConfig
    train: dict[str, str]
    val: dict[str, str]
    test: dict[str, str]
    image_size: tuple[int, int]
    trial: TrialConfig
    cpu: float
    gpu: float
    keep: int

    def stage1(self, params: dict[str, Any], out: Path) -> Stage1Config:
        """Stage 1's configuration of a trial with the sampled options ``params``."""
        cfg = self.space.configure(self.base, params)
        cfg.source.cache, cfg.reading.mirror, cfg.run.out = [*self.caches], self.mirror, out
        return cfg


def check(cfg: SearchConfig) -> SearchPlan:
    """The plan of a search; raises ConfigError, CacheError, DataError or ModelError."""
    if cfg.cluster.address is not None:
        refuse_silent(cfg.cluster.address, "--address")
    base = _base(cfg)
    space = spaces.read(cfg.space, base)
    _check_space(cfg, space)
    train, val, test = _domains(cfg)
    cpu, gpu = _resources(cfg)
    _provide(cfg)
    caches = tuple(cache if is_url(cache) else str(Path(cache).expanduser().resolve()) for cache in cfg.cache)
    joint = open_joined(caches, home=cfg.mirror.folder, limit=round(cfg.mirror.gb * 1e9))
    plan = SearchPlan(
        space=space,
        base=base,
        default=spaces.defaults(space, base, stage1.default_lr),
        out=cfg.out.resolve(),
        caches=caches,
        mirror=replace(cfg.mirror, folder=cfg.mirror.folder.absolute()),
        train=train,
        val=val,
        test=test,
        image_size=joint.image_size,
        trial=cfg.trial,
        cpu=cpu,
        gpu=gpu,
        keep=cfg.trial.steps if cfg.choice.scheduler == "pbt" else 2,
    )
    _check_student(plan)
    _check_datasets(plan)
    return plan


def _provide(cfg: SearchConfig) -> None:
    """Write the embedded data, and the teacher's cache of it, if no other is named."""
    if not cfg.cache:
        cfg.cache = [str(defaults.proxy_cache())]
    elif not cfg.domains.train:
        defaults.data()


def _base(cfg: SearchConfig) -> dict[str, Any]:
    return {
        "student": cfg.student.name,
        "student_args": cfg.student.args,
        "student_weights": cfg.student.weights,
        "ds_config": str(ds_config.find(cfg.ds_config, LAUNCHERS).resolve()),
        "seed": cfg.seed,
        "steps": cfg.trial.steps,
        "save_every": cfg.trial.every,
        "workers": 1,
    }


def _check_space(cfg: SearchConfig, space: spaces.Space) -> None:
    first = next((key for key, dimension in space.searched.items() if dimension.kind != "choice"), None)
    if cfg.choice.search == "grid" and first:
        raise ConfigError(
            f"{space.path}: '{first}' is {space.searched[first].text()}, but --search grid needs choices",
            "write choice(x, y, ...), or use --search random",
        )
    if cfg.choice.scheduler == "pbt":
        wrong = [key for key in space.searched if not spaces.may_change(key)]
        if wrong:
            raise ConfigError(
                f"{space.path}: '{wrong[0]}' cannot change in the middle of a run, as --scheduler pbt would",
                "search optim.* except optim.name, loss.*, mask.*, drop_path, for example --space pbt.yaml",
            )
    _check_batches(cfg, space)


def _check_batches(cfg: SearchConfig, space: spaces.Space) -> None:
    """ConfigError if the DeepSpeed config and the ranks do not allow a global batch of the space."""
    dimension = space.searched.get("global_batch")
    if dimension is not None and dimension.kind != "choice":
        raise ConfigError(f"{space.path}: 'global_batch' is {dimension.text()}", "write choice(16, 32, ...)")
    for batch in dimension.values if dimension else [space.fixed.get("global_batch")]:
        ds_config.resolve(
            cfg.ds_config,
            LAUNCHERS,
            global_batch=batch,
            world=cfg.trial.workers,
            device=torch.device("cuda" if _gpus(cfg) else "cpu"),
            default=stage1.DEFAULT_GLOBAL_BATCH,
        )


# ---------------------------------------------------------------------------------------- domains


def _domains(cfg: SearchConfig) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """``train``, ``val`` and ``test``, ADAPTER:PATH by name; ConfigError if a test domain is selected on."""
    train = _refs(cfg.domains.train or [DEFAULT_TRAIN], "--train")
    val = _refs(cfg.domains.val or [DEFAULT_VAL], "--val")
    test = _refs(cfg.domains.test, "--test")
    for flag, domains in (("--train", train), ("--val", val)):
        for name, ref in domains.items():
            _refuse_test(flag, name, ref, test)
    for ref in val.values():
        if any(_same(ref, other) for other in train.values()):
            raise ConfigError(
                f"--val {ref} is also what the probe is fitted on (--train)", "give another --val"
            )
    return train, val, test


def _refuse_test(flag: str, name: str, ref: str, test: dict[str, str]) -> None:
    for other, test_ref in test.items():
        if name == other or _same(ref, test_ref):
            raise ConfigError(
                f"the domain {name} ({ref}) is named both in {flag} and in --test ({other}={test_ref})",
                "a domain that is selected on is no test: leave it out of one of them",
            )
    if any(part.startswith(TEST_PREFIX) for part in Path(ref.partition(":")[2]).parts):
        raise ConfigError(f"{flag} {ref} is for testing only ('{TEST_PREFIX}')", "select on a source domain")


def _refs(refs: list[str], flag: str) -> dict[str, str]:
    """``[NAME=]ADAPTER:PATH`` by name, with absolute paths; the path is the name if there is none."""
    domains: dict[str, str] = {}
    for text in refs:
        name, equals, ref = text.partition("=")
        if not equals:
            name, ref = "", text
        target = registry.parse(ref)
        name = name or "/".join([*target.path.parts[-2:], *target.part.split("/")]).rstrip("/")
        if name in domains:
            raise ConfigError(f"{flag} names the domain '{name}' twice", "write NAME=ADAPTER:PATH")
        domains[name] = str(target._replace(path=target.path.resolve()))
    return domains


def _same(one: str, two: str) -> bool:
    """Whether two references share images: one folder and no two parts of it, or one inside the other."""
    first, second = registry.parse(one), registry.parse(two)
    if first.path == second.path:
        return first.part == second.part or not (first.part and second.part)
    return first.path.is_relative_to(second.path) or second.path.is_relative_to(first.path)


def _check_datasets(plan: SearchPlan) -> None:
    """Check that all domains can be opened, have one class list, and have plausible labels."""
    first = next(iter(plan.train.values()))
    classes = registry.open_dataset(first).classes
    for ref in [*plan.train.values(), *plan.val.values(), *plan.test.values()]:
        dataset = registry.open_dataset(ref)
        registry.require_classes(dataset, classes, ref, first)
        registry.glance(dataset)


# ---------------------------------------------------------------------------------------- student


def _check_student(plan: SearchPlan) -> None:
    """ModelError unless the student's name is timm's or ours, and timm builds all that the space can draw."""
    draws = [
        {key: value}
        for key, dimension in plan.space.searched.items()
        if key.startswith("student")
        for value in (*dimension.values, *spaces.between(dimension))
    ]
    for params in [{}, *draws]:
        for cfg in plan.stage1(params, plan.out).per_student():
            (name,) = cfg.student.names
            spec, _ = models.resolve(str(name), cfg.student.args)
            if not params and not cfg.student.args:
                continue
            try:
                with torch.device("meta"), torch.random.fork_rng(devices=[]):
                    backbone.any_size(spec, drop_path=cfg.student.drop_path)
            except ModelError as error:
                where = "".join(f"{plan.space.path}, {key} {value}: " for key, value in params.items())
                raise ModelError(f"{where}{error.message}", error.hint) from None


# -------------------------------------------------------------------------------------- resources


def cores(cfg: SearchConfig) -> int:
    """CPU cores of a search on this machine."""
    return cfg.cluster.cpus or len(os.sched_getaffinity(0))


def _gpus(cfg: SearchConfig) -> int:
    """GPUs that a rank gets, or could get on this machine."""
    resources = cfg.trial.resource_map().get("gpu")
    return int(resources > 0) if resources is not None else torch.cuda.device_count()


def _resources(cfg: SearchConfig) -> tuple[float, float]:
    """CPU cores and GPUs of a rank; ConfigError if this machine can never give them."""
    resources = cfg.trial.resource_map()
    cpu, gpu = resources.get("cpu", 1.0), resources.get("gpu", float(min(1, _gpus(cfg))))
    if not cpu and not gpu:
        raise ConfigError(
            f"--resources {cfg.trial.resources} gives a rank nothing to run on", "give it cpu=1, or gpu=1"
        )
    if gpu > 1:
        raise ConfigError(
            f"--resources gives a rank {gpu:g} GPUs", "a rank uses one: raise --workers-per-trial"
        )
    if 0 < gpu < 1 and cfg.trial.workers > 1:
        raise ConfigError(
            f"--resources gives each of {cfg.trial.workers} ranks {gpu:g} of a GPU, which NCCL refuses",
            "use gpu=1, or --workers-per-trial 1",
        )
    if cfg.cluster.address is None:
        totals = {"CPU cores": cores(cfg), "GPUs": torch.cuda.device_count()}
        for (what, available), amount in zip(totals.items(), (cpu, gpu), strict=True):
            require_resources(cfg.trial.workers, amount, available, what, "this machine")
    return cpu, gpu


def require_resources(workers: int, amount: float, available: float, what: str, place: str) -> None:
    """ConfigError unless ``place`` has ``amount`` of ``what`` for each of the ``workers`` of a trial."""
    if workers * amount > available:
        raise ConfigError(
            f"a trial needs {workers * amount:g} {what} ({workers} workers of {amount:g}), "
            f"{place} has {available:g}",
            "lower --resources or --workers-per-trial, or give --address of a larger cluster",
        )
