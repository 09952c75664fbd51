"""Mutated image files and lists: success or an error of ours, and nothing half-written."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
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
from tests.cache.bad_input import files, photo
from tests.cache.support import TinyTeacher, config

SEEDS = sorted({content for name, content in files().values() if "." in name and len(content) > 40}, key=len)


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


def mutated(data: bytes, edits: list[Edit]) -> bytes:
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


images = st.builds(mutated, st.sampled_from(SEEDS), EDITS)


@examples(300)
@given(images)
def test_an_image_file_is_upright_rgb_or_has_a_reason(data: bytes) -> None:
    try:
        found = open_bytes(data)
    except UnreadableImage as reason:
        assert str(reason).strip() and "\n" not in str(reason)
    else:
        assert found.image.mode == "RGB" and min(found.image.size) > 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            path.write_bytes(data)
            assert upright_size(path) == (found.image.height, found.image.width)


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
        refused(lambda: check(open_dataset(f"folder:{root}"), workers=0))


PATHS = [f"images/{name}.png" for name in ("a", "é", "x y")]
TEXTS = [
    text.encode(encoding)
    for text in ("\n".join(PATHS), "\r\n".join(["sky", "road", "été"]))
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1")
]
texts = st.builds(mutated, st.sampled_from(TEXTS), EDITS)


@examples(150)
@given(texts)
def test_a_class_list_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classes.txt"
        path.write_bytes(data)
        names: list[str] = []
        refused(lambda: names.extend(read_classes(path) or ()))
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
        refused(lambda: [_read(source, name) for name, _ in source.entries()])


def _read(source: PathList, name: str) -> None:
    with contextlib.suppress(OSError, UnreadableImage):  # recorded, never fatal
        open_bytes(source.read(name))


def refused(command: Callable[[], object]) -> None:
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
