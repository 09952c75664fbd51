"""Run folders as data: what was trained from what, its curves, and its scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gkd_scale import files
from gkd_scale.cache.manifest import is_complete
from gkd_scale.documents import read_yaml
from gkd_scale.engine import run, runlog
from gkd_scale.errors import RunError
from gkd_scale.models import backbone
from gkd_scale.segment import export

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Phase:
    """One training: ``rows`` are its metrics, a mapping a step; ``artifact`` names the file it left."""

    folder: Path
    stage: int
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    seconds: float
    artifact: str

    @property
    def title(self) -> str:
        return f"stage {self.stage}: {self.folder.name}"

    def data(self) -> list[str]:
        """The data that it was trained on."""
        return [str(location) for location in self.config.get("cache" if self.stage == 1 else "train") or []]


@dataclass(frozen=True)
class Run:
    """A folder that was named, with the trainings that led to it, the first one first.

    ``scores`` is what ``gkd-scale evaluate`` wrote; ``card`` is None for a stage-1 run.
    """

    name: str
    folder: Path
    phases: list[Phase]
    card: export.Card | None
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs, named by the shortest ends of their paths that tell them apart; RunError for no run."""
    names = _names(folders)
    return [_run(name, folder) for name, folder in zip(names, folders, strict=True)]


def _names(folders: list[Path]) -> list[str]:
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise RunError("a run is named twice", "name each run once")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return ["/".join(path.parts[-parts:]) for path in paths]


def _run(name: str, folder: Path) -> Run:
    phases = list(_lineage(folder, ()))[::-1]
    if not phases:
        what = "holds no training" if folder.is_dir() else "does not exist"
        raise RunError(
            f"{folder} {what} (no {run.RECORD})", "give the --out folder of a finished stage 1 or 2"
        )
    card = export.load_card(folder) if phases[-1].stage == 2 else None
    return Run(name, folder, phases, card, files.read_json(folder / EVALUATION))


def _lineage(folder: Path, chain: tuple[Path, ...]) -> Iterator[Phase]:
    """The training of ``folder`` and those before it, the last one first; a moved one ends the line."""
    phase = _phase(folder)
    if phase is None or folder in chain:
        return
    yield phase
    before = phase.config.get("student_weights" if phase.stage == 1 else "backbone")
    if before and Path(before).is_dir():
        yield from _lineage(Path(before), (*chain, folder))


def _phase(folder: Path) -> Phase | None:
    record = run.read(folder)
    if record is None or not (folder / run.CONFIG).is_file():
        return None
    config = read_yaml(folder / run.CONFIG)
    try:
        rows = runlog.read(folder / runlog.METRICS) if (folder / runlog.METRICS).is_file() else []
    except ValueError as error:
        raise RunError(
            f"{folder / runlog.METRICS} cannot be read: {error}", "run that training's command again"
        ) from None
    weights = folder / backbone.WEIGHTS_FILE
    artifact = f"{weights.name} {files.sha256_file(weights)[:12]}" if weights.is_file() else "not finished"
    stage = 2 if "backbone" in config else 1
    return Phase(folder, stage, config, rows, float(record.get("seconds") or 0), artifact)


def is_cache(location: str) -> bool:
    """Whether a phase's data is a teacher cache on this machine."""
    return is_complete(Path(location))
