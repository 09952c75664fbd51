"""The model card: ``README.md`` for people and the Hub, ``export.json`` for programs.

Beside them ``training/`` holds the resolved config of every training that led to the run: a launcher with
``--config`` of it does that training again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from gkd_scale import __version__, files
from gkd_scale.commands import shell
from gkd_scale.export.config import ExportConfig
from gkd_scale.export.formats import FORMATS
from gkd_scale.export.measure import MiouChange
from gkd_scale.export.subject import Shapes, Subject
from gkd_scale.export.usage import usage
from gkd_scale.export.verify import Difference
from gkd_scale.models import backbone as backbones
from gkd_scale.models import hub
from gkd_scale.report.runs import Phase
from gkd_scale.segment import export as segmenters

CARD_FILE = "README.md"
FACTS_FILE = "export.json"
TRAINING = "training"
_INPUT = "normalised pixels, see config.json"


@dataclass(frozen=True)
class Checks:
    """Results for an export: the inputs it takes, how it differs from the run on ``images`` of ``source``."""

    shapes: Shapes
    differences: Sequence[Difference]
    images: int
    source: str
    costs: Sequence[MiouChange]
    notes: Sequence[str] = ()


def write(folder: Path, config: ExportConfig, subject: Subject, checks: Checks) -> None:
    """Write ``training/``, ``export.json`` and ``README.md`` beside the model's files."""
    for name, phase in _phases(subject):
        files.write_bytes(folder / TRAINING / f"{name}.yaml", (phase.folder / "config.yaml").read_bytes())
    hashes = {
        str(path.relative_to(folder)): files.sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files.write_json(folder / FACTS_FILE, facts(config, subject, checks, hashes))
    files.write_text(folder / CARD_FILE, page(config, subject, checks, hashes))


def facts(config: ExportConfig, subject: Subject, checks: Checks, hashes: dict[str, str]) -> dict[str, Any]:
    """What ``export.json`` says; JSON types."""
    spec, card = subject.backbone.spec, subject.card
    values: dict[str, Any] = {
        "gkd_scale": __version__,
        "format": config.format,
        "dtype": config.dtype,
        "with_head": subject.head,
        "model": spec.name,
        "args": spec.args,
        "input": "pixels, RGB 0..1, float32" if FORMATS[config.format].head else _INPUT,
        "shapes": checks.shapes.value,
        "image_size": list(subject.image_size),
        "stride": 1 if subject.head else subject.backbone.stride,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "outputs": list(subject.graph().outputs),
        "differences": [asdict(result) for result in checks.differences],
        "checked_on": {"images": checks.images, "source": checks.source},
        "miou": [asdict(result) for result in checks.costs],
        "license": config.license,
        "sha256": hashes,
        "run": run_hashes(subject),
    }
    if subject.head and card is not None:
        values |= {
            "head": card.head,
            "classes": card.classes,
            "palette": [list(colour) for colour in card.palette],
        }
    return json.loads(json.dumps(values))


def run_hashes(subject: Subject) -> dict[str, str]:
    """SHA-256 of the run's own weights."""
    names = [backbones.WEIGHTS_FILE, *([segmenters.HEAD_FILE] if subject.head else [])]
    return {name: files.sha256_file(subject.run / name) for name in names}


def page(config: ExportConfig, subject: Subject, checks: Checks, hashes: dict[str, str]) -> str:
    """The card as Markdown with the Hub's YAML header."""
    spec, card = subject.backbone.spec, subject.card
    what = f"{card.head} segmenter on {spec.name}" if subject.head and card else f"{spec.name} backbone"
    parameters = sum(value.numel() for value in subject.graph().parameters())
    lines = [
        "---",
        yaml.safe_dump(_header(config, subject), sort_keys=False).rstrip(),
        "---",
        "",
        f"# {subject.run.resolve().name}: {what}",
        "",
        f"{parameters / 1e6:.2f} M parameters, {config.dtype}, distilled and exported with gkd-scale "
        f"{__version__}. Takes {checks.shapes.value} (in training {subject.image_size[0]}x"
        f"{subject.image_size[1]}, H x W).",
        *(f"\n{note}." for note in checks.notes),
        "",
        "## Use",
        "",
        *usage(config.format, subject, checks.shapes),
        "",
        "## Checked",
        "",
        f"Against PyTorch on {checks.images} images of {checks.source}:",
        "",
        *(f"- {difference.line()}" for difference in checks.differences),
        *_metrics(subject, checks),
        *_data(config, subject),
        "## Commands",
        "",
        "```sh",
        *_commands(config, subject),
        "```",
        "",
        "## Files",
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *(f"| {name} | `{digest}` |" for name, digest in hashes.items()),
        *(f"| the run's {name} | `{digest}` |" for name, digest in run_hashes(subject).items()),
        "",
    ]
    return "\n".join(lines)


def _header(config: ExportConfig, subject: Subject) -> dict[str, Any]:
    header: dict[str, Any] = {
        "license": config.license or "unknown",
        "library_name": FORMATS[config.format].library,
        "pipeline_tag": "image-segmentation" if subject.head else "image-feature-extraction",
        "tags": ["gkd-scale", "knowledge-distillation", *(["semantic-segmentation"] if subject.head else [])],
    }
    scores = _scores(subject)
    if subject.head and scores:
        results = [
            {
                "task": {"type": "image-segmentation"},
                "dataset": {"name": domain, "type": domain},
                "metrics": [{"type": "mean_iou", "value": round(value, 4), "name": "mIoU, %"}],
            }
            for domain, value in scores.items()
        ]
        header["model-index"] = [{"name": subject.run.resolve().name, "results": results}]
    return header


def _scores(subject: Subject) -> dict[str, float]:
    """The run's mIoU by ``gkd-scale evaluate``, 0..100 by domain."""
    scores = subject.history.scores if subject.history else {}
    return {name: float(result["miou"]) for name, result in scores.items()}


def _metrics(subject: Subject, checks: Checks) -> Iterator[str]:
    yield ""
    if subject.card is None:
        return
    yield from ("## Metrics", "", "mIoU in %, at ground-truth size.", "")
    if not subject.head:
        yield from ("They are those of the segmenter that was trained on this backbone.", "")
    yield from ("| data | mIoU | by |", "|---|---:|---|")
    yield f"| in-domain validation, step {subject.card.step} | {subject.card.miou:.2f} | the run, PyTorch |"
    for name, value in _scores(subject).items():
        yield f"| {name} | {value:.2f} | the run, PyTorch |"
    for cost in checks.costs:
        yield f"| {cost.domain}, {cost.images} images | {cost.run:.2f} | the run, PyTorch |"
        yield f"| {cost.domain}, {cost.images} images | {cost.export:.2f} | this export |"
    yield ""
    if subject.head:
        names = ", ".join(f"{index} {name}" for index, name in enumerate(subject.card.classes))
        yield from (f"Classes: {names}.", "")


def _data(config: ExportConfig, subject: Subject) -> Iterator[str]:
    yield from ("## Data and licences", "", "| | | licence |", "|---|---|---|")
    yield f"| these weights | | {config.license or 'not stated'} |"
    yield f"| architecture | {subject.backbone.spec.name} | Apache-2.0, timm's code |"
    for name in _teachers(subject):
        yield f"| teacher | {name} | {hub.licence_of(name) or 'not known to timm'} |"
    for _, phase in _phases(subject):
        for place in phase.data():
            what = "features and images" if phase.stage == 1 else "labelled images"
            yield f"| {phase.title}: {what} | `{place}` | not known to gkd-scale |"
    yield from ("", "A student may have to keep the licences of its teacher and of its data.", "")


def _teachers(subject: Subject) -> list[str]:
    """Names of the teachers, the first one first."""
    names: list[str] = []
    for _, phase in _phases(subject):
        path = phase.folder / backbones.CARD_FILE
        if phase.stage == 1 and path.is_file():
            names += backbones.teachers_of(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    return list(dict.fromkeys([*names, *backbones.teachers_of(subject.facts)]))


def _phases(subject: Subject) -> list[tuple[str, Phase]]:
    """The trainings that led to the run, the first one first, each with a file's name."""
    phases = subject.history.phases if subject.history else []
    return [(f"{number}-{phase.folder.resolve().name}", phase) for number, phase in enumerate(phases, 1)]


def _commands(config: ExportConfig, subject: Subject) -> Iterator[str]:
    for name, phase in _phases(subject):
        script = f"launchers/stage{phase.stage}.py"
        yield shell("deepspeed", script, "--config", f"{TRAINING}/{name}.yaml")
    yield shell("gkd-scale", "export", *arguments(config))


def arguments(config: ExportConfig) -> list[object]:
    """The arguments of the command that makes this export."""
    words: list[object] = [config.run, "--format", config.format, "--out", config.out]
    if config.with_head:
        words.append("--with-head")
    if config.dtype != "fp32":
        words += ["--dtype", config.dtype]
    for flag, value in (
        ("--image-size", config.image_size),
        ("--images", config.images),
        ("--license", config.license),
    ):
        words += [flag, value] if value else []
    return words + [part for domain in config.data for part in ("--data", domain)]
