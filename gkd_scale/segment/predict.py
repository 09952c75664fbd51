"""``gkd-scale predict``: a finished stage-2 run on anybody's images.

::

    OUT/masks/PATH.png        class ids at the image's size, in the classes' colours
    OUT/overlays/PATH.jpg     with --overlay: the image under them
    OUT/logits/PATH.npz       with --save-logits: ``logits`` (K, H, W) float16
    OUT/contact-sheet.jpg     a few images and their masks
    OUT/not-predicted.txt     names of the images that could not be used, and why
    OUT/predict.json          classes, colours, and what predicted

PATH mirrors the folders of ``--images``. An image whose files all exist is not predicted again. Under a
launcher (``launchers/predict.py``) each rank predicts every ``world``-th image.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale import console, files
from gkd_scale.cache.location import EXTENSIONS, is_url
from gkd_scale.cache.plan import ImagePlan, make_plan
from gkd_scale.cache.source import Source, open_source
from gkd_scale.engine.run import hold
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import DataError, RunError, one_line
from gkd_scale.images import UnreadableImage, open_bytes, open_image
from gkd_scale.prefetch import BackgroundJobs, prefetch
from gkd_scale.segment import export, pictures
from gkd_scale.segment.config import PredictConfig
from gkd_scale.segment.datasets import registry
from gkd_scale.segment.evaluate import how_to_look, on_device, rate_bar
from gkd_scale.segment.inference import Inference, by_size, prepare, require_bounded, scores
from gkd_scale.segment.inference import predict as classes_of
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.segment.video import Video, is_video
from gkd_scale.types import UInt8Array

CARD_FILE = "predict.json"
SHEET_FILE = "contact-sheet.jpg"
UNUSED_FILE = "not-predicted.txt"
_SHEET_IMAGES = 12
_LIMIT = 5
_LONGEST = 220
"""Bytes of a name: file systems take 255, and a suffix and a temporary one are added."""
_WRITES = 16
"""Images that may wait to be written; more would only take memory."""


Item = tuple[list[Tensor], tuple[int, Image.Image]]
"""An image as inference takes it, its place among the names, and its pixels."""


def _outputs(config: PredictConfig, stem: str) -> list[Path]:
    """All output files of one image; the mask is written last."""
    overlays = [config.out / "overlays" / f"{stem}.jpg"] if config.overlay else []
    logits = [config.out / "logits" / f"{stem}.npz"] if config.save_logits else []
    return [*overlays, *logits, config.out / "masks" / f"{stem}.png"]


def predict(config: PredictConfig, runtime: Runtime | None = None) -> int:
    """Predict all images without a prediction; returns how many images could not be used. Collective.

    Raises DataError if no image can be used, and RunError if OUT holds predictions of another run, or of
    this run with other settings.
    """
    start = time.perf_counter()
    runtime = on_device(runtime, config.device)
    source: Source | None = registry.open_labels(config.images, quiet=not runtime.main)
    source = source or _file_source(config.images) or open_source(config.images)
    segmenter, card = export.load_segmenter(config.run)
    # on every rank: a source reads only images that it has listed
    plan = make_plan(config.images, 1, skip=config.out, source=source)
    names = sorted(entry.name for entry in plan)
    outputs = [_outputs(config, stem) for stem in output_stems(names)]
    task = _Task(config, card, how_to_look(config, card), _reader(config, plan), names, outputs, plan.notes)
    segmenter.to(runtime.device)
    with hold(runtime, [config.out]):
        runtime.on_main(task.begin)
        task.run(segmenter, runtime)
        runtime.barrier()
        return runtime.on_main(lambda: task.conclude(start))


@dataclass(frozen=True)
class _Task:
    """All images of a command: their ``names``, the function that reads one, their output files, notes."""

    config: PredictConfig
    card: export.Card
    how: Inference
    read: Callable[[str], Image.Image]
    names: Sequence[str]
    all_outputs: Sequence[list[Path]]
    notes: Sequence[str]

    def _is_predicted(self, place: int) -> bool:
        """Whether all output files of an image exist. Each was written whole."""
        return all(path.is_file() for path in self.all_outputs[place])

    def begin(self) -> None:
        """Write ``predict.json``; RunError if OUT holds other files or other settings. Rank 0."""
        out = self.config.out
        settings: dict[str, Any] = {
            "run": export.fingerprint(self.config.run),
            "inference": self.how.facts(),
            "classes": self.card.classes,
            "palette": [list(colour) for colour in self.card.palette],
            "images": _absolute(self.config.images),
        }
        before = files.read_json(out / CARD_FILE)
        changes = [key for key in settings if before.get(key, settings[key]) != settings[key]]
        if changes:
            what = "other images" if changes == ["images"] else f"another {' and '.join(changes)}"
            raise RunError(f"{out} holds predictions of {what}", "give another --out, or remove that folder")
        if not before and any(path.name != files.LOCK for path in out.iterdir()):
            raise RunError(f"{out} holds other files", "give --out a folder of its own")
        files.write_json(out / CARD_FILE, settings)

    def run(self, segmenter: Segmenter, runtime: Runtime) -> None:
        """Predict this rank's images that have no prediction yet."""
        share = range(runtime.rank, len(self.names), runtime.world)
        pending = [place for place in share if not self._is_predicted(place)]
        config = self.config
        with (
            rate_bar("predict", len(pending), visible=runtime.main and bool(pending)) as advance,
            BackgroundJobs(_WRITES, max(1, config.workers)) as writer,
        ):
            load = partial(self._load, advance)
            items = filter(None, prefetch(load, pending, config.workers, depth=2 * config.batch_size))
            for views, images in by_size(items, self.how, config.batch_size, runtime.device):
                infer = scores if config.save_logits else classes_of
                sizes = [(image.height, image.width) for _, image in images]
                results = infer(segmenter, views, sizes, self.how, config.batch_size)
                for (place, image), result in zip(images, results, strict=True):
                    outputs = self.all_outputs[place]
                    writer.submit(partial(_write, outputs, image, self.card.palette, result.cpu(), advance))

    def _load(self, advance: Callable[[int], None], place: int) -> Item | None:
        """The image at ``place``; None for one that cannot be used, which is counted as done."""
        try:
            image = self._image(self.names[place])
        except (OSError, UnreadableImage, DataError):
            advance(1)
            return None
        views = [prepare(np.asarray(image), self.card.image_size, scale) for scale in self.how.scales]
        return views, (place, image)

    def _image(self, name: str) -> Image.Image:
        """The image of this name; OSError, UnreadableImage or DataError if it cannot be used."""
        image = self.read(name)
        require_bounded("it", np.asarray(image), self.card.image_size, self.how)
        return image

    def _reason(self, name: str) -> str:
        """Why there is no prediction of this image."""
        try:
            self._image(name)
        except DataError as error:
            return error.message
        except (OSError, UnreadableImage) as error:
            return one_line(error)
        return "no prediction was written"

    def conclude(self, start: float) -> int:
        """Write the contact sheet and print a summary; returns how many images could not be used. Rank 0."""
        present = [place for place in range(len(self.names)) if self._is_predicted(place)]
        missing = sorted(set(range(len(self.names))) - set(present))
        reasons = [(self.names[place], self._reason(self.names[place])) for place in missing]
        if not present:
            name, reason = reasons[0]
            (self.config.out / CARD_FILE).unlink()
            raise DataError(
                f"none of the {len(self.names)} images can be used; {name!r}: {reason}", "check --images"
            )
        out = self.config.out
        sheet_places = present[:: max(1, len(present) // _SHEET_IMAGES)][:_SHEET_IMAGES]
        files.write_bytes(out / SHEET_FILE, self._sheet(sheet_places))
        seconds = time.perf_counter() - start
        console.say(
            f"{len(present)} of {len(self.names)} images predicted in {out}, in {seconds:.1f} s; "
            f"{out / SHEET_FILE} shows {len(sheet_places)}",
            *(f"note: {note}" for note in self.notes),
        )
        _tell_unused(out / UNUSED_FILE, reasons)
        return len(reasons)

    def _sheet(self, places: Sequence[int]) -> bytes:
        """Each image beside its overlay, as a JPEG."""
        pairs = []
        for place in places:
            image = self.read(self.names[place])
            with Image.open(self.all_outputs[place][-1]) as mask:
                pairs.append((image, pictures.overlay(image, np.asarray(mask), self.card.palette)))
        buffer = io.BytesIO()
        pictures.contact_sheet(pairs).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def _tell_unused(path: Path, reasons: Sequence[tuple[str, str]]) -> None:
    """Print the first images that could not be used, and write all of them to ``path``."""
    path.unlink(missing_ok=True)
    if not reasons:
        return
    files.write_text(path, "".join(f"{name}\t{reason}\n" for name, reason in reasons))
    for name, reason in reasons[:_LIMIT]:
        console.err.print(f"not predicted: {name!r}: {reason}", markup=False, style="yellow")
    if len(reasons) > _LIMIT:
        more = len(reasons) - _LIMIT
        console.err.print(f"not predicted: {more} more, in {path}", markup=False, style="yellow")


def output_stems(names: Sequence[str]) -> list[str]:
    """Relative paths without a suffix for images of these names, all different; none leaves its folder.

    ``a/b.jpg`` becomes ``a/b``; images that differ by their suffix alone keep it (``a/b.jpg``).
    """
    safe = [_inside(name) for name in names]
    stems = [str(PurePosixPath(path).with_suffix("")) for path in safe]
    for _ in range(2):  # a name with its suffix may equal another name without
        counts = Counter(stems)
        stems = [path if counts[stem] > 1 else stem for path, stem in zip(safe, stems, strict=True)]
    clashes = [stem for stem, count in Counter(stems).items() if count > 1]
    if clashes:
        raise DataError(
            f"two images would be written as {clashes[0]!r}", "give them names of their own, or two commands"
        )
    return stems


def _inside(name: str) -> str:
    """A name as a relative path: without a root, ``..`` spelled out."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "//", ".")]
    return "/".join("_up" if part == ".." else _short(part) for part in parts)


def _short(part: str) -> str:
    """A file's or folder's name with room for another suffix; the end of a longer one becomes its hash."""
    if len(os.fsencode(part)) <= _LONGEST:
        return part
    suffix = PurePosixPath(part).suffix if len(PurePosixPath(part).suffix) < 8 else ""
    prefix = os.fsencode(part)[: _LONGEST - 32].decode("utf-8", "ignore")
    return f"{prefix}-{hashlib.blake2b(os.fsencode(part), digest_size=8).hexdigest()}{suffix}"


class GlobSource:
    """The source of one image file, or of those that a pattern with ``*`` names."""

    def __init__(self, pattern: str) -> None:
        matches = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        self._paths = sorted(path for path in matches if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not self._paths:
            raise DataError(
                f"no image matches {pattern!r}", f"images end in {' '.join(EXTENSIONS)}; quote the pattern"
            )
        self._root = Path(os.path.commonpath([path.parent for path in self._paths]))

    def entries(self) -> list[tuple[str, int]]:
        return [(str(path.relative_to(self._root)), path.stat().st_size) for path in self._paths]

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


def _file_source(images: str) -> Source | None:
    """The source of a video, of a single file, or of a pattern; None for anything else."""
    path = Path(images)
    if is_video(images):
        return Video(path)
    single = path.is_file() and path.suffix.lower() in EXTENSIONS
    pattern = glob.has_magic(images) and not path.is_dir() and not is_url(images) and "{" not in images
    return GlobSource(glob.escape(images) if single else images) if single or pattern else None


def _absolute(images: str) -> str:
    """``--images`` with an absolute path, if it is a path."""
    return images if ":" in images else os.path.abspath(images)  # noqa: PTH100 (patterns too)


def _reader(config: PredictConfig, plan: ImagePlan) -> Callable[[str], Image.Image]:
    """Reads one image by its printable name; raises OSError or UnreadableImage."""
    paths, source = {entry.name: entry.path for entry in plan}, plan.source
    if source is None:
        return lambda name: open_image(Path(config.images) / paths[name]).image
    return lambda name: open_bytes(source.read(paths[name])).image


def _write(
    outputs: Sequence[Path],
    image: Image.Image,
    palette: pictures.Palette,
    prediction: Tensor,
    advance: Callable[[int], None],
) -> None:
    """Write an image's output files; ``prediction`` is classes (H, W) or logits (K, H, W)."""
    classes = prediction.max(0).indices if prediction.ndim == 3 else prediction
    mask: UInt8Array = classes.to(torch.uint8).numpy()
    for path in outputs:
        buffer = io.BytesIO()
        if path.suffix == ".npz":
            np.savez(buffer, logits=prediction.half().numpy())
        elif path.suffix == ".jpg":
            pictures.overlay(image, mask, palette).save(buffer, "JPEG", quality=90)
        else:
            pictures.palette_image(mask, palette).save(buffer, "PNG")
        files.write_bytes(path, buffer.getvalue())
    advance(1)
