"""Mutated tars: their images, or one DataError; never another exception, never an image of other bytes."""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gkd_scale.cache.plan import make_plan
from gkd_scale.cache.tars import Tars
from gkd_scale.errors import DataError
from tests.cache.archives import Member, picture, tar_of

PICTURES = [picture(seed, (16, 16)) for seed in range(3)]
NAMES = st.sampled_from(
    [
        "0.jpg",
        "a/0.jpg",
        "./1.png",
        "._0.jpg",
        "0.cls",
        "ü.jpg",
        "x" * 150 + ".jpg",
        "d.jpg/",
        "/abs.jpg",
        "../up.jpg",
    ]
)
MEMBERS: st.SearchStrategy[Member] = st.one_of(
    st.tuples(NAMES, st.sampled_from([*PICTURES, b"", b"\0\5\x16\7"])),
    st.tuples(NAMES, NAMES),
    st.tuples(st.tuples(NAMES, NAMES).map("<".join), st.none()),
)
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def read_all(data: bytes) -> list[bytes]:
    """The images of a tar with these bytes; all names can be printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tar")
        path.write_bytes(data)
        plan = make_plan(str(path), 4)
        assert isinstance(plan.source, Tars) and all(each.isprintable() for each in plan.notes)
        contents = []
        for entry in plan:
            entry.name.encode()
            with contextlib.suppress(OSError):
                contents.append(plan.source.read(entry.path))
        assert list(Path(folder).iterdir()) == [path], "nothing is written"
        return contents


@settings(max_examples=150)
@given(st.lists(MEMBERS, min_size=1, max_size=6), FORMATS)
def test_every_image_that_is_stored_is_found(members: list[Member], format: int) -> None:
    data = tar_of(members, format)
    images = [
        content
        for name, content in members
        if isinstance(content, bytes)
        and name.endswith((".jpg", ".png"))
        and not (name.startswith("._") and content[:4] == b"\0\5\x16\7")
    ]
    try:
        contents = read_all(data)
    except DataError as error:
        assert not images, error
        return
    for each in set(images):
        assert contents.count(each) >= images.count(each)


@settings(max_examples=300)
@given(st.lists(MEMBERS, min_size=1, max_size=4), FORMATS, st.data())
def test_cuts_and_changed_bytes(members: list[Member], format: int, data: st.DataObject) -> None:
    tar = bytearray(tar_of(members, format))
    headers = max(1, len(tar) // 512)
    for _ in range(data.draw(st.integers(1, 4))):
        place = 512 * data.draw(st.integers(0, headers - 1)) + data.draw(st.integers(0, 511))
        tar[place % len(tar)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        _mend(tar)
    length = data.draw(st.integers(0, len(tar)) | st.just(len(tar)))
    with contextlib.suppress(DataError):
        read_all(bytes(tar[:length]))


def _mend(tar: bytearray) -> None:
    """Make the checksums of changed headers right, so that what they say is believed."""
    for start in range(0, len(tar) - 511, 512):
        if tar[start + 257 : start + 262] == b"ustar":
            block = tar[start : start + 512]
            block[148:156] = b" " * 8
            tar[start + 148 : start + 156] = f"{sum(block):06o}\0 ".encode()


@settings(max_examples=50)
@given(st.binary(max_size=2048))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(DataError):
        read_all(data)
