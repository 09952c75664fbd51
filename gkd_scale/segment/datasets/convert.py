"""``gkd-scale datasets convert``: labels to train ids, large tiles to crops; parallel and resumable.

Every output appears whole or not at all and depends on its source alone, so the same command goes on where
it stopped. ``converted.json``, written last, says what was converted from which folder; until then
``converting.json`` does.

Any adapter's labels become 8-bit train ids in the layout of the ``folder`` adapter (GTAV's palette, 66 ids of
Mapillary, SYNTHIA's 16-bit PNGs): ``DST/PART/{images,labels}``, or ``DST`` itself if one part is named;
images are links to the originals. ``potsdam`` and ``vaihingen`` are cut by :mod:`.tiles`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from gkd_scale import console, files
from gkd_scale.errors import ConfigError, DataError, nearest
from gkd_scale.prefetch import prefetch
from gkd_scale.segment.datasets import registry, tiles
from gkd_scale.segment.datasets.adapter import Adapter, PairDataset
from gkd_scale.segment.datasets.config import ConvertConfig
from gkd_scale.segment.datasets.folder import ABSENT_FILE
from gkd_scale.segment.datasets.labels import image_size, require_same_size
from gkd_scale.types import UInt8Array

RECORD = "converted.json"
_MARK = "converting.json"


class FileJob(NamedTuple):
    """One source: ``is_done`` says whether its outputs exist, ``run`` writes the missing ones."""

    is_done: Callable[[], bool]
    run: Callable[[], None]


def main(cfg: ConvertConfig) -> None:
    """``gkd-scale datasets convert``: convert, and print what is missing and what was written."""
    record = convert(cfg)
    console.say(
        *(f"not there: {name}" for name in record.get("missing", [])),
        ", ".join(f"{key} {record[key]}" for key in ("tiles", "pairs", "kept") if key in record),
    )


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Convert ``config.source`` into ``config.out``; returns the content of ``converted.json``.

    Raises ConfigError for an unknown name or part, DataError if sources are missing or unreadable, or if
    the folder holds something else.
    """
    parts: list[tuple[PairDataset, Path]] = []
    if config.name in tiles.ORIGINALS:
        originals = tiles.find(tiles.ORIGINALS[config.name], Path(config.source).expanduser())
        jobs = [FileJob(*tiles.work(tile, config.out, _png)) for tile in originals.tiles]
        facts: dict[str, Any] = {"tiles": len(originals.tiles), "missing": originals.missing}
    elif config.name in registry.ADAPTERS:
        parts = _parts(registry.ADAPTERS[config.name], config)
        jobs = [job for dataset, out in parts for job in _label_jobs(dataset, out, config.copy)]
        facts = {"pairs": len(jobs)}
    else:
        names = [*tiles.ORIGINALS, *registry.ADAPTERS]
        raise ConfigError(
            f"there is no dataset '{config.name}' to convert",
            nearest(config.name, names) or f"choose one of: {', '.join(names)}",
        )
    for dataset, _ in parts:
        registry.glance(dataset)
    settings = {"converter": config.name, "source": str(Path(config.source).expanduser().resolve())}
    with files.claim(config.out, DataError):
        _claim(config.out, settings)
        count = _run(jobs, config)
        for dataset, out in parts:
            _write_classes(dataset, out)
        record = {**settings, **facts}
        files.write_json(config.out / RECORD, record)
        (config.out / _MARK).unlink(missing_ok=True)
    return {**record, "kept": count}


def _run(jobs: Sequence[FileJob], config: ConvertConfig) -> int:
    """Run the jobs that are not done; returns how many were done before."""
    with console.progress("{task.fields[kept]}") as progress:
        task = progress.add_task(f"converting {config.name}", total=len(jobs), kept="")

        def work(job: FileJob) -> bool:
            complete = job.is_done()
            if not complete:
                job.run()
            return complete

        count = 0
        for exists in prefetch(work, jobs, config.workers, 2 * config.workers):
            count += exists
            progress.update(task, advance=1, kept=f"{count} were there" if count else "")
    return count


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into ``out``, or compare them with those there; DataError if it holds other data."""
    for name in (RECORD, _MARK):
        if (out / name).is_file():
            before = json.loads((out / name).read_text(encoding="utf-8"))
            changes = [key for key in settings if before.get(key) != settings[key]]
            if changes:
                key = changes[0]
                raise DataError(
                    f"{out} holds other data: {key} is {before.get(key)}, asked is {settings[key]}",
                    "name another folder",
                )
            return
    if any(path.name != files.LOCK for path in out.iterdir()):
        raise DataError(f"{out} holds files that convert did not write", "name an empty or a new folder")
    files.write_json(out / _MARK, settings)


# ----------------------------------------------------------------------------------- any adapter's labels


def _parts(adapter: Adapter, config: ConvertConfig) -> list[tuple[PairDataset, Path]]:
    """The datasets to convert, and where each goes."""
    ref = registry.split(adapter, config.source)
    names = [part for part in adapter.parts if part]
    if ref.part or not names:
        return [(adapter.open(ref.path, ref.part), config.out)]
    present = [part for part in adapter.present(ref.path) if part]
    # If no part exists, opening the first one says what is missing.
    return [(adapter.open(ref.path, part), config.out / part) for part in present or names[:1]]


def _write_classes(dataset: PairDataset, out: Path) -> None:
    files.write_text(out / "classes.txt", "\n".join(dataset.classes) + "\n")
    if dataset.absent:
        files.write_text(out / ABSENT_FILE, "\n".join(dataset.absent) + "\n")
    else:
        (out / ABSENT_FILE).unlink(missing_ok=True)


def _label_jobs(dataset: PairDataset, out: Path, copy: bool) -> list[FileJob]:
    """A job for each pair; DataError if two images have one name, as one would overwrite the other."""
    paths: dict[str, Path] = {}
    for image, _ in dataset.pairs:
        if image.stem in paths:
            raise DataError(f"{paths[image.stem]} and {image} have the same name", "rename one of them")
        paths[image.stem] = image
    return [_label_job(dataset, index, out, copy) for index in range(len(dataset))]


def _label_job(dataset: PairDataset, index: int, out: Path, copy: bool) -> FileJob:
    image, _ = dataset.pairs[index]
    to_image, to_label = out / "images" / image.name, out / "labels" / f"{image.stem}.png"

    def run() -> None:
        label = dataset.label(index)
        require_same_size(image_size(image), label.shape, dataset.pairs[index])
        files.write_bytes(to_label, _png(label))
        if copy:
            files.write_bytes(to_image, image.read_bytes())
        else:
            _link(to_image, image.resolve())

    return FileJob(lambda: to_image.is_file() and to_label.is_file(), run)


def _link(path: Path, target: Path) -> None:
    """Write a symbolic link in one move, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + files.TEMPORARY)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


def _png(pixels: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
