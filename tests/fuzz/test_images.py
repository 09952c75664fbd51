"""Mutated image files and lists: success or an error of ours, and nothing half-written."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gkd_scale.cache.build import build
from gkd_scale.cache.reader import Cache
from gkd_scale.cache.source import PathList
from gkd_scale.errors import GkdError
from gkd_scale.images import UnreadableImage, open_bytes, upright_size
from gkd_scale.segment.datasets.folder import read_classes
from gkd_scale.segment.datasets.registry import check, open_dataset
from tests.cache.bad_input import chunk, files, photo
from tests.cache.support import TinyTeacher, config
from tests.segment.datasets.miniature import write_tiff


def tiffs() -> list[bytes]:
    """TIFFs of planes, signs and byte orders, as Pillow does not write them."""
    pixels = np.asarray(photo(24, 18))
    result = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("u1", "u2", "i2", "f4"):
            for order, planes, compress in (("<", False, False), (">", True, True), (">", False, True)):
                samples = pixels.astype(kind) * np.array(257 if kind == "u2" else 1, kind)
                samples = samples[..., 0] if kind in ("i2", "f4") else samples
                path = write_tiff(Path(folder, "x"), samples, order=order, planes=planes, compress=compress)
                result.append(path.read_bytes())
    return result


SEEDS = sorted(
    {content for name, content in files().values() if "." in name and len(content) > 40} | {*tiffs()}, key=len
)


def examples(most: int) -> settings:
    """The same examples in every run."""
    slow = [HealthCheck.too_slow]
    return settings(
        max_examples=most, deadline=None, derandomize=True, database=None, suppress_health_check=slow
    )


Edit = tuple[str, float, bytes]
"""What is done at which share of the file's length with which bytes."""

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["put", "insert", "cut", "end", "swap"]),
        st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
        st.binary(min_size=1, max_size=4),
    ),
    max_size=4,
)


def mutate(data: bytes, edits: list[Edit]) -> bytes:
    for kind, share, new in edits:
        at = int(share * len(data))
        data = {
            "put": data[:at] + new + data[at + len(new) :],
            "insert": data[:at] + new + data[at:],
            "cut": data[:at] + data[at + 1 + new[0] :],
            "end": data[:at],
            "swap": data[at:] + data[:at],
        }[kind]
    return data


images = st.builds(mutate, st.sampled_from(SEEDS), EDITS)


@examples(300)
@given(images)
def test_an_image_file_is_upright_rgb_or_has_a_reason(data: bytes) -> None:
    try:
        result = open_bytes(data)
    except UnreadableImage as reason:
        assert str(reason).strip() and "\n" not in str(reason)
    else:
        assert result.image.mode == "RGB" and min(result.image.size) > 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            path.write_bytes(data)
            assert upright_size(path) == (result.image.height, result.image.width)


FORMS = st.sampled_from(
    [
        (0, 1),
        (0, 2),
        (0, 4),
        (0, 8),
        (0, 16),
        (2, 8),
        (2, 16),
        (3, 1),
        (3, 4),
        (3, 8),
        (4, 8),
        (6, 8),
        (6, 16),
    ]
)
"""PNG's colour types and bits, but for greys with alpha of 16 bits."""


def png_of(form: tuple[int, int], values: npt.NDArray[np.int64], clear: list[int] | None, seed: int) -> bytes:
    """A PNG of samples (H, W, C), with PNG's chunk of what is transparent, and a palette."""
    kind, bits = form
    rows = values.reshape(len(values), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        planes = (rows[..., None] >> np.arange(bits)[::-1]) & 1
        lines = [np.packbits(row.reshape(-1)).tobytes() for row in planes]
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header)
    if kind == 3:
        chunks += chunk(b"PLTE", palette(bits, seed).tobytes())
    if clear is not None:
        chunks += chunk(b"tRNS", bytes(clear) if kind == 3 else struct.pack(f">{len(clear)}H", *clear))
    chunks += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def palette(bits: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (1 << bits, 3), dtype=np.uint8)


@examples(80)
@given(FORMS, st.booleans(), st.integers(0, 99))
def test_a_png_of_any_form_is_what_its_samples_say(form: tuple[int, int], clear: bool, seed: int) -> None:
    kind, bits = form
    random = np.random.default_rng(seed)
    top = (1 << bits) - 1
    values = random.integers(0, top + 1, (7, 11, {2: 3, 4: 2, 6: 4}.get(kind, 1)))
    values[0, 0] = top
    share = values / top
    colour = (
        palette(bits, seed)[values[..., 0]] / 255 if kind == 3 else share[..., : 3 if kind in (2, 6) else 1]
    )
    alpha = share[..., -1] if kind in (4, 6) else np.ones(values.shape[:2])
    key: list[int] | None = None
    if clear and kind == 3:
        key = [int(value) for value in random.integers(0, 256, 1 << bits)]
        alpha = np.array(key)[values[..., 0]] / 255
    elif clear and kind in (0, 2):
        key = [int(value) for value in values[3, 3]]
        values[3, 4:] = key
        share = values / top
        colour, alpha = share, np.where((values == key).all(-1), 0, 1)
    result = np.asarray(open_bytes(png_of(form, values, key, seed)).image)
    np.testing.assert_allclose(result, np.broadcast_to(255 * colour * alpha[..., None], result.shape), atol=2)


@examples(25)
@given(st.lists(images, min_size=1, max_size=4))
def test_caching_ends_with_a_whole_cache_or_with_nothing(contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "images", Path(folder) / "cache"
        source.mkdir()
        for index, data in enumerate(contents):
            (source / f"{index}.png").write_bytes(data)
        try:
            report = build(config(source, out, views=1, workers=1), TinyTeacher(), quiet=True)
        except GkdError as error:
            assert "none of the" in error.message
            assert not out.exists()
        else:
            assert Cache.open(out).num_samples == len(contents) - len(report.errors) > 0


@examples(60)
@given(images)
def test_a_labelled_folder_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in ("images", "labels"):
            (root / kind).mkdir()
        (root / "images/1.jpg").write_bytes(data)
        Image.fromarray(np.zeros((70, 90), np.uint8)).save(root / "labels/1.png")
        attempt(lambda: check(open_dataset(f"folder:{root}"), workers=0))


PATHS = [f"images/{name}.png" for name in ("a", "é", "x y")]
TEXTS = [
    text.encode(encoding)
    for text in ("\n".join(PATHS), "\r\n".join(["sky", "road", "été"]))
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1")
]
texts = st.builds(mutate, st.sampled_from(TEXTS), EDITS)


@examples(150)
@given(texts)
def test_a_class_list_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classes.txt"
        path.write_bytes(data)
        names: list[str] = []
        attempt(lambda: names.extend(read_classes(path) or ()))
        assert len(names) == len(set(names)) and all(name == name.strip() != "" for name in names)


@examples(100)
@given(texts)
def test_a_list_of_images_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "images").mkdir()
        photo().save(root / "images/a.png")
        (root / "list.txt").write_bytes(data)
        source = PathList(root / "list.txt")
        attempt(lambda: [_read(source, name) for name, _ in source.entries()])


def _read(source: PathList, name: str) -> None:
    with contextlib.suppress(OSError, UnreadableImage):  # recorded, never fatal
        open_bytes(source.read(name))


def attempt(command: Callable[[], object]) -> None:
    """Run a command; an error of ours is as good as success, if it says what to do."""
    try:
        command()
    except GkdError as error:
        assert error.message and error.hint and "\n" not in error.message


def test_the_seeds_are_many() -> None:
    formats = {open_bytes(data).source["format"] for data in SEEDS if _is_whole(data)}
    assert formats >= {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO"}


def _is_whole(data: bytes) -> bool:
    try:
        open_bytes(data)
    except UnreadableImage:
        return False
    return True
