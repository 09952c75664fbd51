"""``gkd-scale export``: write, load again in the other library, compare, and only then say that it is done.

Everything is made beside OUT and moved there at the end: OUT is whole or not there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gkd_scale import console, files
from gkd_scale.errors import GkdError, ModelError, UserError
from gkd_scale.export import card, measure, pixels, push, verify
from gkd_scale.export.card import Checks
from gkd_scale.export.config import ExportConfig
from gkd_scale.export.formats import FORMATS
from gkd_scale.export.pixels import Pixels
from gkd_scale.export.subject import Forward, How, Shapes, Subject, open_subject

CHECKED_ON = 4
"""Images that an export is compared on."""
CALIBRATED_ON = 32
"""Images that static quantisation measures activations on."""
_DOUBTFUL = 0.99
"""Below this share of equal classes a smaller dtype is warned of."""


def export(config: ExportConfig) -> None:
    """Write the export. Raises RunError, ConfigError, ModelError or DataError before anything is written,
    and GkdError if the written files do not compute what the run computes; then nothing stays.
    """
    implementation = FORMATS[config.format].implementation()
    if config.push_to_hub is not None:
        push.require_access(config.push_to_hub)
    with files.whole_folder(config.out) as folder:
        subject = open_subject(config.run, head=config.with_head, image_size=config.size())
        datasets = measure.open_domains(subject, config.domains())
        count = CALIBRATED_ON if config.dtype == "int8" else CHECKED_ON
        samples = pixels.find(config.images, subject.history, subject.image_size, count)
        forward, checks = _write_checked(config, implementation, subject, samples, folder)
        costs = [measure.cost(subject, forward, checks.shapes, *pair) for pair in datasets.items()]
        checks = replace(checks, costs=costs)
        card.write(folder, config, subject, checks)
    _tell(config, checks)
    if config.push_to_hub is not None:
        with console.out.status("uploading"):
            address = push.push(config.out, config.push_to_hub)
        console.out.print(f"uploaded to {address}", markup=False)


def _write_checked(
    config: ExportConfig, implementation: Any, subject: Subject, samples: Pixels, folder: Path
) -> tuple[Forward, Checks]:
    """Write the model's files and check them; if a graph cannot take all inputs, try the next best."""
    attempts = subject.shapes() if implementation.FIXED else [Shapes.ANY, Shapes.BATCH]
    reason = subject.why_fixed() if implementation.FIXED else ""
    images = samples.images[:CHECKED_ON]
    with console.progress() as progress:
        task = progress.add_task("export", total=3)
        for shapes in attempts:
            progress.update(task, completed=0, description=f"writing {config.format}")
            try:
                implementation.write(subject, folder, How(shapes, config.dtype, samples.images))
                progress.update(task, completed=1, description="loading it")
                forward: Forward = implementation.load(folder, subject, shapes)
                progress.update(task, completed=2, description="comparing")
                exact = config.dtype == "fp32"
                differences = verify.differences(subject, forward, images, shapes, exact=exact)
            except (OSError, UserError):
                raise
            except Exception as error:  # exporters raise anything
                if shapes is attempts[-1]:
                    raise _failure(config, subject, error) from error
                files.empty(folder)
                reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                continue
            progress.update(task, completed=3, description="export")
            notes = [_limit(subject, shapes, reason)] if shapes is not Shapes.ANY else []
            return forward, Checks(shapes, differences, len(images), samples.source, (), notes)
    raise AssertionError("no attempt")


def _limit(subject: Subject, shapes: Shapes, reason: str) -> str:
    height, width = subject.image_size
    return f"Only images of {height}x{width} (H x W) are taken, {shapes.value.partition(',')[0]}: {reason}"


def _failure(config: ExportConfig, subject: Subject, error: Exception) -> GkdError:
    if isinstance(error, verify.Differs):
        return verify.Differs(
            f"{error.message}; nothing was written", "please report it with this run's backbone.yaml"
        )
    others = [fmt.name for fmt in FORMATS.values() if fmt.head or not config.with_head]
    return ModelError(
        f"{subject.backbone.name} cannot be written as {config.format}: "
        f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        f"use another --format: {', '.join(name for name in others if name != config.format)}",
    )


def _tell(config: ExportConfig, checks: Checks) -> None:
    """Say what was written and how far it is from the run."""
    min_same = min((result.same for result in checks.differences if result.same is not None), default=1.0)
    if min_same < _DOUBTFUL:
        console.out.print(
            f"warning: {100 * (1 - min_same):.1f} % of pixels get another class as {config.dtype}; "
            "--data NAME=ADAPTER:PATH measures what that costs",
            markup=False,
            style="yellow",
        )
    console.say(
        *(f"note: {note}" for note in checks.notes),
        f"checked against PyTorch on {checks.images} images of {checks.source}:",
        *(f"  {result.line()}" for result in checks.differences),
        *(f"  {result.line()}" for result in checks.costs),
        f"{config.out} is complete: {config.format}, {config.dtype}; see its {card.CARD_FILE}",
    )
