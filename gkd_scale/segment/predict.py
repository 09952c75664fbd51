"""``gkd-scale predict``: a finished stage-2 run on anybody's images.

::

    OUT/masks/PATH.png        class ids at the image's size, in the classes' colours
    OUT/overlays/PATH.jpg     with --overlay: the image under them
    OUT/logits/PATH.npz       with --save-logits: ``logits`` (K, H, W) float16
    OUT/contact-sheet.jpg     a few images and their masks
    OUT/unreadable.txt        names of the images that could not be read, and why
    OUT/predict.json          classes, colours, and what predicted

PATH mirrors the folders of ``--images``. An image whose files are all there is not predicted again. Under a
launcher (``launchers/predict.py``) each rank predicts every ``world``-th image.
"""

from __future__ import annotations

import glob
import io
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gkd_scale import console, files
from gkd_scale.cache.location import EXTENSIONS, is_url
from gkd_scale.cache.plan import make_plan
from gkd_scale.cache.source import Source, open_source
from gkd_scale.engine.runtime import Runtime
from gkd_scale.errors import DataError, RunError
from gkd_scale.images import UnreadableImage, open_bytes
from gkd_scale.prefetch import prefetch
from gkd_scale.segment import export, pictures
from gkd_scale.segment.config import PredictConfig
from gkd_scale.segment.evaluate import how_to_look, on_device
from gkd_scale.segment.inference import Inference, by_size, prepare, scores
from gkd_scale.segment.inference import predict as classes_of
from gkd_scale.types import Size, UInt8Array

CARD_FILE = "predict.json"
SHEET_FILE = "contact-sheet.jpg"
UNREAD_FILE = "unreadable.txt"
_SHEET_IMAGES = 12
_SHOWN = 5
_WRITING = 16
"""Images that may wait to be written; more would only take memory."""


class Loaded(NamedTuple):
    """An image that was read: ``views`` as inference takes them, its own ``size``, and its pixels."""

    place: int
    views: list[Tensor]
    size: Size
    image: Image.Image


@dataclass(frozen=True)
class Outputs:
    """Where an image's files go, and which of them are wanted."""

    folder: Path
    stem: str
    overlay: bool
    logits: bool

    @property
    def mask(self) -> Path:
        return self.folder / "masks" / f"{self.stem}.png"

    def paths(self) -> list[Path]:
        """All files that the image gets; the mask is written last."""
        found = []
        if self.overlay:
            found.append(self.folder / "overlays" / f"{self.stem}.jpg")
        if self.logits:
            found.append(self.folder / "logits" / f"{self.stem}.npz")
        return [*found, self.mask]

    def done(self) -> bool:
        """Whether all of them are there. Each was written whole."""
        return all(path.is_file() for path in self.paths())


def predict(config: PredictConfig, source: Source | None = None, runtime: Runtime | None = None) -> int:
    """Predict all images that have no prediction yet; how many images could not be read. Collective.

    ``source`` is what ``config.images`` names, if the caller has opened it. Raises DataError if no image can
    be read, and RunError if OUT holds what another run, or this one otherwise, has predicted.
    """
    runtime = on_device(runtime, config.device)
    source = source or _matching(config.images)
    segmenter, card = export.load_segmenter(config.run)
    how = how_to_look(config, card)
    names, read = runtime.on_main(lambda: _listed(config, source)), _reader(config, source)
    stems = output_stems(names)
    wanted = [Outputs(config.out, stem, config.overlay, config.save_logits) for stem in stems]
    runtime.on_main(lambda: _begin(config, card, how))
    segmenter.to(runtime.device)
    mine = [place for place in range(runtime.rank, len(names), runtime.world) if not wanted[place].done()]
    began = time.perf_counter()

    def load(place: int) -> Loaded | None:
        try:
            image = read(names[place])
        except (OSError, UnreadableImage):
            return None
        pixels = np.asarray(image)
        views = [prepare(pixels, card.image_size, scale) for scale in how.scales]
        return Loaded(place, views, (image.height, image.width), image)

    with _progress(len(mine), runtime.main) as advance, _Writer(config.workers) as writer:
        loaded = prefetch(load, mine, config.workers, depth=2 * config.batch_size)
        for group in by_size(_readable(loaded, advance), how, config.batch_size):
            views = [
                torch.stack(each).to(runtime.device) for each in zip(*(i.views for i in group), strict=True)
            ]
            look = scores if config.save_logits else classes_of
            found = look(segmenter, views, [item.size for item in group], how, config.batch_size)
            for item, result in zip(group, found, strict=True):
                job = _Files(wanted[item.place], item.image, card.palette, result.cpu())
                writer.submit(partial(job.write, advance))
    runtime.barrier()
    return runtime.on_main(lambda: _conclude(config, card, names, wanted, read, began))


def output_stems(names: Sequence[str]) -> list[str]:
    """Relative paths without a suffix for images of these names, all different; none leaves its folder.

    ``a/b.jpg`` becomes ``a/b``; of images that differ by their suffix alone each keeps it (``a/b.jpg``).
    """
    safe = [_inside(name) for name in names]
    bare = [str(PurePosixPath(path).with_suffix("")) for path in safe]
    counts = Counter(bare)
    stems = [path if counts[stem] > 1 else stem for path, stem in zip(safe, bare, strict=True)]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise DataError(
            f"two images would be written as {twice[0]!r}", "give them names of their own, or two commands"
        )
    return stems


def _inside(name: str) -> str:
    """A name as a relative path: without a root, ``..`` spelled out."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", "//", ".")]
    return "/".join("_up" if part == ".." else part for part in parts)


class Matching:
    """The source of one image file, or of those that a pattern with ``*`` names."""

    def __init__(self, pattern: str) -> None:
        found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
        self._paths = sorted(path for path in found if path.suffix.lower() in EXTENSIONS and path.is_file())
        if not self._paths:
            raise DataError(
                f"no image matches {pattern!r}", f"images end in {' '.join(EXTENSIONS)}; quote the pattern"
            )
        self._root = Path(os.path.commonpath([path.parent for path in self._paths]))

    def entries(self) -> list[tuple[str, int]]:
        return [(str(path.relative_to(self._root)), path.stat().st_size) for path in self._paths]

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


def _matching(images: str) -> Source | None:
    """The source of a single file or of a pattern; None for anything else."""
    path = Path(images)
    single = path.is_file() and path.suffix.lower() in EXTENSIONS
    pattern = glob.has_magic(images) and not path.is_dir() and not is_url(images) and "{" not in images
    return Matching(glob.escape(images) if single else images) if single or pattern else None


def _listed(config: PredictConfig, source: Source | None) -> list[str]:
    return [entry.name for entry in make_plan(config.images, 1, skip=config.out, source=source).entries]


def _reader(config: PredictConfig, source: Source | None) -> Callable[[str], Image.Image]:
    """Reads one image by name; raises OSError or UnreadableImage."""
    opened = source or open_source(config.images)
    if opened is None:
        return lambda name: open_bytes((Path(config.images) / name).read_bytes()).image
    return lambda name: open_bytes(opened.read(name)).image


def _begin(config: PredictConfig, card: export.Card, how: Inference) -> None:
    """Write ``predict.json``, or find that what is there is of the same run and settings."""
    asked: dict[str, Any] = {
        "run": export.fingerprint(config.run),
        "inference": how.facts(),
        "classes": card.classes,
        "palette": [list(colour) for colour in card.palette],
    }
    path = config.out / CARD_FILE
    before = files.read_json(path)
    changed = [key for key in asked if before and before.get(key) != asked[key]]
    if changed:
        raise RunError(
            f"{config.out} holds predictions of another {' and '.join(changed)}",
            "give another --out, or remove that folder",
        )
    if not before and config.out.is_dir() and any(config.out.iterdir()):
        raise RunError(f"{config.out} holds other files", "give --out a folder of its own")
    files.write_json(path, asked)


@dataclass(frozen=True)
class _Files:
    """What was found of an image, classes (H, W) or logits (K, H, W), and where it goes."""

    outputs: Outputs
    image: Image.Image
    palette: pictures.Palette
    found: Tensor

    def write(self, advance: Callable[[], None]) -> None:
        classes = self.found.max(0).indices if self.found.ndim == 3 else self.found
        mask: UInt8Array = classes.to(torch.uint8).numpy()
        for path in self.outputs.paths():
            buffer = io.BytesIO()
            if path.suffix == ".npz":
                np.savez(buffer, logits=self.found.half().numpy())
            elif path.suffix == ".jpg":
                pictures.overlay(self.image, mask, self.palette).save(buffer, "JPEG", quality=90)
            else:
                pictures.palette_image(mask, self.palette).save(buffer, "PNG")
            files.write_bytes(path, buffer.getvalue())
        advance()


class _Writer:
    """A few threads that encode and write; ``submit`` waits while too much is queued. Errors come back."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="write")
        self._pending: list[Future[None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        while len(self._pending) >= _WRITING or (self._pending and self._pending[0].done()):
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(job))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()


@contextmanager
def _progress(images: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar with rate and ETA; what is yielded counts one image, from any thread."""
    began, lock, done = time.perf_counter(), threading.Lock(), 0
    with console.progress("{task.fields[rate]}", disable=not shown or not images) as progress:
        task = progress.add_task("predict", total=images, rate="")

        def advance() -> None:
            nonlocal done
            with lock:
                done += 1
                rate = done / (time.perf_counter() - began)
            progress.update(task, advance=1, rate=f"{rate:.1f} images/s")

        yield advance


def _readable(loaded: Iterable[Loaded | None], advance: Callable[[], None]) -> Iterator[Loaded]:
    """The images that could be read; the others are counted as done."""
    for item in loaded:
        if item is None:
            advance()
        else:
            yield item


def _conclude(
    config: PredictConfig,
    card: export.Card,
    names: Sequence[str],
    wanted: Sequence[Outputs],
    read: Callable[[str], Image.Image],
    began: float,
) -> int:
    """Write the contact sheet, tell what was done and what could not be read; how many could not. Rank 0."""
    there = [place for place, outputs in enumerate(wanted) if outputs.done()]
    missing = [names[place] for place in sorted(set(range(len(names))) - set(there))]
    reasons = [(name, _reason(read, name)) for name in missing]
    if not there:
        name, reason = reasons[0]
        raise DataError(f"none of the {len(names)} images can be read; {name!r}: {reason}", "check --images")
    step = max(1, len(there) // _SHEET_IMAGES)
    pairs = []
    for place in there[::step][:_SHEET_IMAGES]:
        image = read(names[place])
        with Image.open(wanted[place].mask) as mask:
            shown = pictures.overlay(image, np.asarray(mask), card.palette)
        pairs.append((image, shown))
    buffer = io.BytesIO()
    pictures.contact_sheet(pairs).save(buffer, "JPEG", quality=90)
    files.write_bytes(config.out / SHEET_FILE, buffer.getvalue())
    seconds = time.perf_counter() - began
    console.out.print(
        f"{len(there)} of {len(names)} images predicted in {config.out}, in {seconds:.1f} s; "
        f"{config.out / SHEET_FILE} shows {len(pairs)}",
        markup=False,
    )
    for name, reason in reasons[:_SHOWN]:
        console.err.print(f"not read: {name!r}: {reason}", markup=False, style="yellow")
    if len(reasons) > _SHOWN:
        console.err.print(
            f"not read: {len(reasons) - _SHOWN} more, in {config.out / UNREAD_FILE}", style="yellow"
        )
    lines = "".join(f"{name}\t{reason}\n" for name, reason in reasons)
    if lines:
        files.write_text(config.out / UNREAD_FILE, lines)
    return len(reasons)


def _reason(read: Callable[[str], Image.Image], name: str) -> str:
    try:
        read(name)
    except (OSError, UnreadableImage) as error:
        return " ".join(str(error).split())
    return "no prediction was written"
